"""YAML documents, read strictly: duplicate keys refused, every error of a file in one message, with its line."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from elta_tune.errors import ConfigError
from elta_tune.files import read_regular
from elta_tune.suggestions import did_you_mean, suggest_field

Model = TypeVar("Model", bound="Section")

RULES = {
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
    "dict_type": "should hold `key: value` lines",
    "extra_forbidden": "there is no such field",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a whole number of fewer digits",
    "int_type": "should be a whole number",
    "missing": "is missing",
    "model_type": "should hold `key: value` lines",
    "path_type": "should be a path",
    "string_type": "should be text",
    "too_short": "should not be empty",
    "tuple_type": "should be a list",
}
"""What pydantic's kinds of errors mean to who writes YAML; of the others its own words are shown."""


class Section(BaseModel):
    """A frozen part of a document: unknown keys, NaN and booleans in the place of numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = str(cls.model_fields[info.field_name or ""].annotation)
        items = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in items) and "bool" not in annotation and "Any" not in annotation:
            raise PydanticCustomError("boolean", "should not be true or false")
        return value


def field_error(name: str, text: str) -> PydanticCustomError:
    """What a check of a whole section raises about one of its fields."""
    return PydanticCustomError("field", "{text}", {"field": name, "text": text})


def option_error(what: str, options: Iterable[str]) -> PydanticCustomError:
    """What a check raises about a value that is none of the known ones."""
    known = list(options)
    return PydanticCustomError(
        "option", "should be {what}: {known}", {"what": what, "known": ", ".join(known), "options": known}
    )


class NotYaml(ValueError):
    """A text can't be read as YAML; `line` counts from 1, None where it is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class Loader(yaml.SafeLoader):
    """YAML as it is meant: `1e-5` is a number, every key is text (`on:` and `1:` too), a wrong scalar has its line."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Takes every key as text, except `<<`."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes PyYAML's own failures on scalars (2020-13-45, !!int x) errors of the document."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{shown(node.value)} can't be read as {kind}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


@dataclass(frozen=True)
class Document:
    """The content of a YAML file, the line and plain text of each dotted key, and the keys that were overridden."""

    name: str
    content: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()

    def place(self, key: str) -> str:
        """`overrides`, or ``file:line`` of a dotted key or of its nearest parent that is in the file."""
        if any(f"{key}.".startswith(f"{name}.") for name in self.overridden):
            return "`overrides`"
        line = self.line(key)
        place = f"{self.name}:{line}" if line else self.name
        return f"{place} and `overrides`" if any(name.startswith(f"{key}.") for name in self.overridden) else place

    def line(self, key: str) -> int:
        """The line of a dotted key or of its nearest parent, or 0."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return self.lines.get(key, 0)


def find_document(name: str, folder: str) -> Path:
    """A document by its path; a bare file name is looked for in `./<folder>`, then among the shipped ones.

    Raises:
        ConfigError: there is none.
    """
    path = Path(os.path.expanduser(name))
    package = Path(__file__).parent
    shipped = [place for place in (package / "shipped" / folder, package.parent / folder) if place.is_dir()]
    places = [Path(), Path(folder), *shipped] if path.name == name else [path.parent]
    found = next((place / path.name for place in places if os.path.isfile(place / path.name)), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(path.stem, {file.stem for place in places for file in place.glob("*.yaml")}, n=1)
    known = sorted({file.name for place in places[1:] for file in place.glob("*.yaml")})
    raise ConfigError(
        f"{name}: no such file" + (f" — did you mean '{near[0]}.yaml'?" if near else ""),
        f"there are: {', '.join(known)}" if known else None,
    )


def read_document(path: Path) -> Document:
    """Reads a YAML mapping; an empty file is an empty one.

    Raises:
        ConfigError: the file can't be read, is not YAML, is not a mapping or has duplicate keys.
    """
    try:
        content, keys = _read_yaml(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a YAML document: it should be UTF-8 text") from error
    except NotYaml as error:
        place = f"{path}:{error.line}" if error.line else f"{path}"
        raise ConfigError(f"{place}: not a YAML document: {error}") from error
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: should hold `key: value` lines")
    lines: dict[str, int] = {}
    problems = []
    for key, line, _ in keys:
        if key in lines:
            problems.append(f"{path}:{line}: {key} is a duplicate of line {lines[key]}")
        lines.setdefault(key, line)
    if problems:
        raise ConfigError("\n".join(problems))
    texts = {key: text for key, _, text in keys if text is not None}
    return Document(str(path), content or {}, lines, texts)


def read_value(text: str) -> Any:
    """The value of a YAML text such as follows `key=` in an override.

    Raises:
        NotYaml: it is none.
    """
    return _read_yaml(text)[0]


Key = tuple[str, int, str | None]
"""A dotted key, its line, and its value as it was typed if that is one unquoted word or number."""


def _read_yaml(text: str) -> tuple[Any, list[Key]]:
    """The content of a YAML text, and its keys."""
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, []
        keys = list(_keys(node))  # before `<<` is resolved, which writes into the nodes
        return loader.construct_document(node), keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(filter(None, (error.context, error.problem)))
        raise NotYaml(_yaml_problem(said), mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        raise NotYaml(_yaml_problem(" ".join(str(error).split()))) from error
    except RecursionError as error:
        raise NotYaml("it is nested too deeply, or an alias (*name) is inside the value that it names") from error


YAML_PROBLEMS = {
    r"character '\\t'": "a tab is used for indentation or before a value; use spaces",
    r"character '[@`%]'": "text that begins with @, ` or % needs quotes",
    r"mapping values are not allowed": "a second `: ` in a line, or wrong indentation; text with `: ` needs quotes",
    r"could not find expected ':'": "a line without `: ` after its key, or a quote or bracket that is not closed",
    r"expected ',' or '[]}]'": "a bracket is not closed, or a comma is missing",
    r"unexpected end of stream": "a quote is not closed",
    r"expected <block end>|did not find expected": "this line does not fit the indentation of the lines above it",
    r"undefined alias": "an alias (*name) has no anchor (&name) above it",
    r"but found another document": "there is a second document (`---`); a file should hold one",
    r"could not determine a constructor": "YAML tags (!name) are not supported",
    r"special characters are not allowed": "it contains a control character",
}
"""What PyYAML says, as a pattern, and what that means to the author of a file."""


def _yaml_problem(said: str) -> str:
    return next((meaning for pattern, meaning in YAML_PROBLEMS.items() if re.search(pattern, said)), said)


def _keys(node: yaml.Node, prefix: str = "") -> Iterator[Key]:
    if isinstance(node, yaml.MappingNode):
        children = [(f"{prefix}{key.value}", key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(f"{prefix}{index}", item, item) for index, item in enumerate(node.value)]
    else:
        return
    for name, key, value in children:
        is_plain = isinstance(value, yaml.ScalarNode) and value.style is None
        yield name, key.start_mark.line + 1, value.value if is_plain else None
        yield from _keys(value, f"{name}.")


def parse(model: type[Model], document: Document) -> Model:
    """Builds `model` from a document.

    Raises:
        ConfigError: names every wrong field at once, each with its place, its rule and a suggestion.
    """
    try:
        return model.model_validate(_with_texts(model, document))
    except ValidationError as error:
        # Where a field takes several types pydantic reports each: the last, which is the widest, is shown.
        problems = {_key(document.content, detail): detail for detail in error.errors()}
        ordered = sorted(problems.items(), key=lambda item: document.line(item[0]))
        raise ConfigError("\n".join(_sentence(model, document, key, detail) for key, detail in ordered)) from None


NULLS = ("", "~", "null", "Null", "NULL")
"""How YAML spells null."""


def _with_texts(model: type[Model], document: Document) -> dict[str, Any]:
    """The content, in which fields that take text or a path have what was typed: the folder `2024`, not the number."""
    content = document.content
    for name, info in field_names(model).items() if document.texts else ():
        text = document.texts.get(name)
        if text is not None and text not in NULLS and takes_text(info):
            content = _with_value(content, name, text)
    return content


def _with_value(content: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of nested mappings with another value of one dotted key."""
    first, _, rest = name.partition(".")
    return {**content, first: _with_value(content[first], rest, value) if rest else value}


def takes_text(info: Any) -> bool:
    """Whether a field takes text or a path, and nothing else (but perhaps null)."""
    kinds = {kind for kind in _kinds(info.annotation) if kind is not NoneType}
    return bool(kinds) and all(isinstance(kind, type) and issubclass(kind, str | PurePath) for kind in kinds)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The members of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for item in get_args(annotation):
            yield from _kinds(item)
    else:
        yield annotation


def field_names(model: type[BaseModel]) -> dict[str, Any]:
    """Dotted names of all leaves of a tree of sections, each with its field."""
    leaves: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        section = next(_sections(info.annotation), None)
        if section is None:
            leaves[name] = info
        else:
            leaves.update({f"{name}.{key}": value for key, value in field_names(section).items()})
    return leaves


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation names, however deep within unions, tuples and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for item in get_args(annotation):
        yield from _sections(item)


def _sentence(model: type[BaseModel], document: Document, key: str, detail: ErrorDetails) -> str:
    """``place: key: rule, not value — did you mean …?``"""
    kind, given = detail["type"], detail["input"]
    rule = RULES.get(kind) or detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    question = ""
    if kind == "kind" and isinstance(given, Mapping):
        given = given.get("type")
    if kind == "extra_forbidden":
        is_flow = ":" in key and given is None  # {val:0.1}, which YAML reads as one key
        rule, question = (NO_BLANK, "") if is_flow else (rule, _suggestion(model, key, detail))
    elif isinstance(given, str | int | float | None) and not isinstance(given, bool) and kind != "missing":
        rule += f", not {shown(given)}"
        question = did_you_mean(given, _options(detail)) if isinstance(given, str) else ""
    name = key if key and key.isprintable() else repr(key)
    return (
        f"{document.place(key)}: {name}: {rule}{question}" if detail["loc"] or key else f"{document.place(key)}: {rule}"
    )


NO_BLANK = "a blank is missing after the colon, as in {val: 0.1}"


def _options(detail: ErrorDetails) -> list[str]:
    """The values that a field takes, where they can be listed."""
    context = detail.get("ctx", {})
    return context.get("options") or re.findall(r"'([^']*)'", str(context.get("expected", "")))


def shown(value: Any, *, limit: int = 60) -> str:
    """A plain value as YAML has it, on one line of at most `limit` characters."""
    if isinstance(value, Mapping | list | tuple):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6).strip()
    else:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _key(content: Any, detail: ErrorDetails) -> str:
    """The dotted key that a user wrote, or left out: pydantic's location also has the kinds of a union's members."""
    parts = []
    for part in detail["loc"]:
        inside = part in content if isinstance(content, Mapping) else _is_index(content, part)
        if inside:
            content = content[part]
            parts.append(str(part))
    if detail["type"] == "missing":
        parts.append(str(detail["loc"][-1]))
    parts += [detail["ctx"]["field"]] if "field" in detail.get("ctx", {}) else []
    return ".".join(parts)


def _is_index(content: Any, part: str | int) -> bool:
    return isinstance(content, list | tuple) and isinstance(part, int) and part < len(content)


def _suggestion(model: type[BaseModel], key: str, detail: ErrorDetails) -> str:
    """A field of like name: of the same section, or of the whole document."""
    models = [model]
    for part in detail["loc"][:-1]:
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        models = [section for info in fields for section in _sections(info.annotation)] if fields else models
    leaf, known = str(detail["loc"][-1]), list(field_names(model))
    if leaf in known:
        return f": it belongs below `{leaf.rpartition('.')[0]}:`"
    section = key.removesuffix(leaf)
    return suggest_field(key, [*known, *(f"{section}{name}" for each in models for name in each.model_fields)])
