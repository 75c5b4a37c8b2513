"""Reads a search space of NNI from JSON, YAML or the dictionary in a script, which is never run."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elta_tune.config import FIELDS
from elta_tune.documents import Document, parse, read_document, shown
from elta_tune.errors import ConfigError
from elta_tune.space.check import FIXED_SECTIONS
from elta_tune.space.space import SearchSpace
from elta_tune.suggestions import did_you_mean

MOST_VALUES = 1000
"""Most values of a rounded range of NNI that are listed."""
SAMPLERS = {"tpe": "tpe", "random": "random", "gridsearch": "grid", "evolution": "evolution"}
"""Names of NNI's tuners, in lower case, and of the same samplers here."""

Path_ = tuple[tuple[str, Any], ...]
"""The branches of nested choices around a parameter: (field, value), the outermost first."""


@dataclass(frozen=True)
class Experiment:
    """The search space in a file of NNI, and what else of a space the file contains."""

    search_space: Mapping[str, Any]
    trials: Any = None
    tuner: Any = None
    mode: Any = None
    """`optimize_mode` of its tuner."""
    assessor: Any = None


def from_nni(file: Path) -> str:
    """The search space in a file of NNI, as a document for `search_spaces/`.

    Raises:
        ConfigError: the file can't be read, names an unknown field, or contains what a space here can't express.
    """
    experiment = read_experiment(file)
    content: dict[str, Any] = {}
    if experiment.trials is not None:
        content["budget"] = {"trials": experiment.trials}
    if (sampler := SAMPLERS.get(str(experiment.tuner).lower())) is not None:
        content["sampler"] = {"name": sampler}
    content["parameters"] = parameters_of(experiment.search_space, source=str(file))
    parse(SearchSpace, Document(str(file), content))
    head = [f"Converted from {file.name}.", "", "  elta-tune space check FILE", *_lost(experiment)]
    text = "".join(f"# {line}".rstrip() + "\n" for line in head)
    return text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _lost(experiment: Experiment) -> list[str]:
    """What the space does not express as the experiment did."""
    lost = []
    if experiment.tuner is not None and str(experiment.tuner).lower() not in SAMPLERS:
        lost.append(f"The experiment's tuner {experiment.tuner} is not supported: the sampler is tpe.")
    if experiment.assessor is not None and str(experiment.assessor).lower() != "medianstop":
        lost.append(f"The experiment's assessor {experiment.assessor} is not supported: the pruner is median.")
    if experiment.mode == "minimize":
        lost.append(
            "The experiment minimized, but this space maximizes srcc. To minimize: `objective: {metric: emd_r1}`."
        )
    return ["", *lost] if lost else []


def parameters_of(search_space: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """NNI's `search_space` as the `parameters` of a space, in the order of first appearance."""
    found: dict[str, list[tuple[Path_, dict[str, Any]]]] = {}
    problems: list[str] = []
    for name, path, body in _walk(search_space, (), source, problems):
        found.setdefault(name, []).append((path, body))
    parameters = {}
    for name, places in found.items():
        bodies = [body for _, body in places]
        if any(body != bodies[0] for body in bodies):
            problems.append(f"{source}: {name}: has different ranges in the branches of a choice; a space can have one")
            continue
        conditions, exact = _conditions([path for path, _ in places], found)
        if not exact:
            problems.append(f"{source}: {name}: is in a combination of branches that `when` can't express")
        parameters[name] = {**bodies[0], **({"when": conditions} if conditions else {})}
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return parameters


def _walk(
    tree: Mapping[str, Any], path: Path_, source: str, problems: list[str]
) -> Iterator[tuple[str, Path_, dict[str, Any]]]:
    """Every parameter with the branches around it; adds what is wrong to `problems`."""
    for key, specification in tree.items():
        if key == "_name":
            continue
        try:
            name = field_of(key)
            branches = _branches(specification)
            yield name, path, _branching(name, list(branches)) if branches else _body(name, specification)
        except ValueError as error:
            problems.append(f"{source}: {key}: {error}")
            continue
        for value, branch in branches.items():
            yield from _walk(branch, (*path, (name, value)), source, problems)


def field_of(key: str) -> str:
    """A recipe's field by its dotted name, the same with underscores, or its last part: `lr`, `simloss_weight`.

    Raises:
        ValueError: no field has that name, or several have it.
    """
    varied = [name for name in FIELDS if name.partition(".")[0] not in FIXED_SECTIONS]
    if key in varied:
        return key
    found = [name for name in varied if key == name.replace(".", "_")] or [
        name for name in varied if key == name.rpartition(".")[2]
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"is ambiguous; write {' or '.join(found)}")
    raise ValueError(f"is not a field of a recipe that a study can vary{did_you_mean(key, varied)}")


def _branches(specification: Any) -> dict[Any, Mapping[str, Any]]:
    """The branches of a nested choice by their value; none if it is not nested."""
    if not isinstance(specification, Mapping) or not {"_type", "_value"} <= set(specification):
        raise ValueError("should look like {_type: uniform, _value: [0, 1]}")
    values = specification["_value"]
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"_value should be a list, not {values!r}")
    if specification["_type"] != "choice" or not all(isinstance(value, Mapping) for value in values):
        return {}
    if not all("_name" in value for value in values):
        raise ValueError("each branch of a nested choice needs a _name")
    return {_scalar(value["_name"]): value for value in values}


def _scalar(name: Any) -> Any:
    """The value in a branch's name: `"2"` is 2, `null` is null; what is not a plain value stays text."""
    try:
        value = yaml.safe_load(str(name))
    except yaml.YAMLError:
        return str(name)
    return value if value is None or isinstance(value, bool | int | float | str) else str(name)


def _branching(name: str, values: list[Any]) -> dict[str, Any]:
    """The parameter that chooses a branch: an integer range if the field is an integer, else a categorical."""
    whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    if whole and FIELDS[name].annotation is int and values == list(range(values[0], values[-1] + 1)):
        return {"type": "int", "low": values[0], "high": values[-1]}
    return {"type": "categorical", "choices": values}


def _body(name: str, specification: Mapping[str, Any]) -> dict[str, Any]:
    kind, values = specification["_type"], specification["_value"]
    if kind == "choice":
        if not all(value is None or isinstance(value, bool | int | float | str) for value in values):
            raise ValueError(f"choices should be numbers, texts, booleans or null, not {values!r}")
        return {"type": "categorical", "choices": list(values)}
    count = {"randint": 2, "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3}.get(kind)
    if count is None:
        raise ValueError(f"{kind} is not supported; use choice, randint, uniform, loguniform, quniform or qloguniform")
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError(f"{kind} takes numbers, not {values!r}") from None
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or (count == 3 and numbers[2] <= 0):
        raise ValueError(f"{kind} takes {count} numbers, the third above 0, not {values!r}")
    if kind == "randint":  # it excludes its upper bound
        return {"type": "int", "low": math.ceil(numbers[0]), "high": math.ceil(numbers[1]) - 1}
    if count == 2:
        return {"type": "float", "low": numbers[0], "high": numbers[1]} | ({"log": True} if "log" in kind else {})
    return _rounded(kind, *numbers)


def _rounded(kind: str, low: float, high: float, step: float) -> dict[str, Any]:
    """NNI rounds to multiples of the step, then clips: the result is a range only if both ends are multiples."""
    if low.is_integer() and high.is_integer() and step == 1:
        return {"type": "int", "low": int(low), "high": int(high)} | ({"log": True} if "log" in kind else {})
    first, last = round(low / step), round(high / step)
    if last - first >= MOST_VALUES:
        raise ValueError(f"{kind} has {last - first + 1} values; a space can list at most {MOST_VALUES}")
    values = sorted({min(max(number * step, low), high) for number in range(first, last + 1)})
    on_steps = math.isclose(first * step, low, abs_tol=1e-12) and math.isclose(last * step, high, abs_tol=1e-12)
    if kind == "quniform" and on_steps:
        return {"type": "float", "low": low, "high": high, "step": step}
    return {"type": "categorical", "choices": [int(v) if v.is_integer() and step.is_integer() else v for v in values]}


def _conditions(paths: list[Path_], found: Mapping[str, list[tuple[Path_, dict[str, Any]]]]) -> tuple[list[str], bool]:
    """`when` of a parameter in these branches, and whether it expresses exactly these."""
    parents = list(dict.fromkeys(field for path in paths for field, _ in path))
    values = {
        parent: list(dict.fromkeys(dict(path)[parent] for path in paths if parent in dict(path))) for parent in parents
    }
    conditions = []
    for parent in parents:
        if not all(value in values[parent] for value in _values_of(found[parent][0][1])):
            shown = yaml.safe_dump(values[parent], default_flow_style=True, width=10_000).strip()
            conditions.append(f"{parent} in {shown}")
    together = math.prod(len(values[parent]) for parent in parents)
    return conditions, len(set(paths)) == together and all(len(path) == len(parents) for path in paths)


def _values_of(body: Mapping[str, Any]) -> list[Any]:
    return list(body["choices"] if "choices" in body else range(body["low"], body["high"] + 1))


def read_experiment(file: Path) -> Experiment:
    """Reads a search space, or an experiment that contains one.

    Raises:
        ConfigError: the file can't be read or contains no search space.
    """
    if file.suffix == ".py":
        return _from_script(file)
    if file.suffix == ".json":
        try:
            content = json.loads(_text(file))
        except ValueError as error:
            raise ConfigError(f"{file}: not JSON: {error}") from error
    elif file.suffix in (".yaml", ".yml"):
        content = read_document(file).content
    else:
        raise ConfigError(f"{file}: should be a .json, .yaml or .py file")
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{file}: contains no search space")
    space = content.get("searchSpace", content.get("search_space"))
    if space is None and (named := content.get("searchSpaceFile", content.get("search_space_file"))):
        raise ConfigError(f"{file}: the search space is in {named}: give that file")
    if space is None:
        return Experiment(content)
    if not isinstance(space, Mapping):
        raise ConfigError(f"{file}: searchSpace: should be a mapping, not {shown(space)}")
    tuner, assessor = (part if isinstance(part := content.get(name), Mapping) else {} for name in ("tuner", "assessor"))
    arguments = tuner.get("classArgs", tuner.get("class_args"))
    return Experiment(
        space,
        content.get("maxTrialNumber", content.get("max_trial_number")),
        tuner.get("name"),
        arguments.get("optimize_mode") if isinstance(arguments, Mapping) else None,
        assessor.get("name"),
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: can't be read: {error}") from error


def _from_script(file: Path) -> Experiment:
    """Literals that a script assigns: `search_space = {…}`, `….max_trial_number = 8`, `….tuner.name = 'TPE'`."""
    try:
        tree = ast.parse(_text(file))
    except SyntaxError as error:
        raise ConfigError(f"{file}:{error.lineno}: not a Python script: {error.msg}") from error
    assigned: dict[str, ast.expr] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            assigned |= {ast.unparse(target): node.value for target in targets}
    spaces = {
        name: value for name, value in assigned.items() if isinstance(value, ast.Dict) and _looks_like_space(value)
    }
    if len(spaces) != 1:
        found = f"{len(spaces)}: {', '.join(spaces)}" if spaces else "none"
        raise ConfigError(f"{file}: should assign one dictionary of {{'_type': …, '_value': …}}, but has {found}")
    (dictionary,) = spaces.values()
    try:
        space = ast.literal_eval(dictionary)
    except (ValueError, TypeError) as error:
        line = getattr(_computed(dictionary), "lineno", dictionary.lineno)
        raise ConfigError(
            f"{file}:{line}: the search space is computed here, but a script is only read, never run",
            "write the values",
        ) from error
    suffixes = (".max_trial_number", ".tuner.name", ".tuner.class_args['optimize_mode']", ".assessor.name")
    trials, tuner, mode, assessor = (_literal(assigned, suffix) for suffix in suffixes)
    arguments = next((value for name, value in assigned.items() if name.endswith(".tuner.class_args")), None)
    with contextlib.suppress(ValueError, TypeError, AttributeError):  # a computed value is unknown
        mode = ast.literal_eval(arguments).get("optimize_mode", mode) if arguments is not None else mode
    return Experiment(space, trials, tuner, mode, assessor)


def _looks_like_space(dictionary: ast.Dict) -> bool:
    inner = [value for value in dictionary.values if isinstance(value, ast.Dict)]
    keys = [{key.value for key in value.keys if isinstance(key, ast.Constant)} for value in inner]
    return bool(inner) and all({"_type", "_value"} <= names for names in keys)


def _computed(expression: ast.expr) -> ast.expr | None:
    """The first part that is not a literal."""
    for node in ast.walk(expression):
        if isinstance(node, ast.Call | ast.Name | ast.BinOp | ast.Attribute | ast.Subscript | ast.JoinedStr):
            return node
    return None


def _literal(assigned: Mapping[str, ast.expr], suffix: str) -> Any:
    found = [
        value.value for name, value in assigned.items() if name.endswith(suffix) and isinstance(value, ast.Constant)
    ]
    return found[-1] if found else None
