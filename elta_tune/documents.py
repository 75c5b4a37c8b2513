"""YAML documents, read strictly: duplicate keys refused, every error of a file in one message, with its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from elta_tune.errors import ConfigError, did_you_mean

Model = TypeVar("Model", bound="Section")


class Section(BaseModel):
    """A frozen part of a document: unknown keys, NaN and booleans in the place of numbers are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = str(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and "bool" not in annotation and "Any" not in annotation:
            raise PydanticCustomError("boolean", "should not be true or false")
        return value


@dataclass(frozen=True)
class Document:
    """The content of a YAML file, where each of its dotted keys stands, and which of them `--set` overrode."""

    name: str
    content: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()

    def place(self, key: str) -> str:
        """``file:line`` of a dotted key, or of its nearest parent that is in the file."""
        if key in self.overridden:
            return "--set"
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.name}:{self.lines[key]}" if key else self.name


def find_document(name: str, folder: str) -> Path:
    """A document by its path; a bare file name is looked for in `./<folder>`, then among the shipped ones.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name).expanduser()
    package = Path(__file__).parent
    shipped = [place for place in (package / "shipped" / folder, package.parent / folder) if place.is_dir()]
    places = [Path(), Path(folder), *shipped] if path.name == name else [Path()]
    found = next((place / path for place in places if (place / path).is_file()), None)
    if found is not None:
        return found
    known = sorted({file.name for place in places[1:] for file in place.glob("*.yaml")})
    listing = f"there are: {', '.join(known)}" if known else None
    raise ConfigError(f"{name}: no such file{did_you_mean(name, known)}", listing)


def read_document(path: Path) -> Document:
    """Reads a YAML mapping.

    Raises:
        ConfigError: the file can't be read, is no YAML, is no mapping or holds a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML document: {' '.join(str(error).split())}") from error
    if node is not None and not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}: should hold `key: value` lines, not a {type(content).__name__}")
    lines: dict[str, int] = {}
    for key, line in _keys(node) if node is not None else ():
        if key in lines:
            raise ConfigError(f"{path}:{line}: {key} stands here twice (first in line {lines[key]})")
        lines[key] = line
    return Document(str(path), content or {}, lines)


def _keys(node: yaml.MappingNode, prefix: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _keys(value, f"{name}.")


def parse(model: type[Model], document: Document) -> Model:
    """Builds `model` from a document.

    Raises:
        ConfigError: names every wrong field at once, each with its place, its rule and a suggestion.
    """
    try:
        return model.model_validate(document.content)
    except ValidationError as error:
        problems = [_sentence(model, document, detail) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(problems))) from None


def field_names(model: type[BaseModel]) -> dict[str, Any]:
    """Dotted names of all leaves of a tree of sections, each with its field."""
    leaves: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        section = _section(info.annotation)
        if section is None:
            leaves[name] = info
        else:
            leaves.update({f"{name}.{key}": value for key, value in field_names(section).items()})
    return leaves


def _section(annotation: Any) -> type[Section] | None:
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, Section)), None)


def _sentence(model: type[BaseModel], document: Document, detail: ErrorDetails) -> str:
    key = ".".join(_location(document.content, detail))
    place = document.place(key)
    if detail["type"] == "extra_forbidden":
        suggestion = did_you_mean(key, _known_keys(model))
        return f"{place}: {key}: there is no such field{suggestion}"
    if detail["type"] == "missing":
        return f"{place}: {key}: is missing"
    message = detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    given = detail["input"]
    shown = f", not {given!r}" if isinstance(given, str | int | float | bool | None) else ""
    return f"{place}: {key}: {message}{shown}" if key else f"{place}: {message}"


def _location(content: Any, detail: ErrorDetails) -> Iterator[str]:
    """The parts of pydantic's location that a user wrote, or left out: it adds the kinds of a union's members."""
    for part in detail["loc"]:
        if isinstance(content, Mapping) and (part in content or detail["type"] == "missing"):
            yield str(part)
            content = content.get(part)
        elif isinstance(content, list | tuple) and isinstance(part, int):
            yield str(part)
            content = content[part]


def _known_keys(model: type[BaseModel]) -> list[str]:
    names = list(field_names(model))
    return names + sorted({name.rpartition(".")[0] for name in names if "." in name})
