"""Converts a search space to NNI's form, exactly, or refuses it.

NNI's `randint` excludes its upper bound. Its `quniform` rounds to multiples of the step and clips. A conditional
parameter has to be inside a branch of a `choice`: a parameter that others depend on becomes a choice, and its
dependents are in the branches in which they exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from elta_tune.config import TrialConfig
from elta_tune.errors import ConfigError, StudyError
from elta_tune.records.reader import Scalar
from elta_tune.space.parameters import CategoricalParameter, FloatParameter, IntParameter, Parameter
from elta_tune.space.space import SearchSpace

Json = Any
"""An object of NNI's JSON: a `search_space`, a branch of a nested choice (with a `_name`), or a trial's parameters."""
Params = Mapping[str, Scalar]
"""A trial's parameters by their dotted names."""


def to_nni(space: SearchSpace, recipe: TrialConfig) -> Json:
    """NNI's `search_space` with the same points as the space.

    Raises:
        ConfigError: the values of a parameter that others depend on can't be listed.
    """
    return _tree(space, recipe, list(space.parameters), {})


def encode(space: SearchSpace, recipe: TrialConfig, params: Params) -> Json:
    """A trial's parameters in the form of NNI's tuners."""
    return _filled(to_nni(space, recipe), _on_steps(space, params), lambda index, value: value)


def encode_with_indices(space: SearchSpace, recipe: TrialConfig, params: Params) -> Json:
    """A trial's parameters in the form of NNI's evolution tuner: each choice with its index."""
    points = _on_steps(space, params)
    return _filled(to_nni(space, recipe), points, lambda index, value: {"_index": index, "_value": value})


def decode(space: SearchSpace, recipe: TrialConfig, parameters: Json) -> dict[str, Scalar]:
    """Parameters that NNI sent to a trial, in the order and types of the space.

    Raises:
        StudyError: they do not fit the space.
    """
    try:
        values = {name: _own(space.parameters[name], value) for name, value in _flat(space, parameters)}
        params = space.choose(values, recipe)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise StudyError(f"NNI sent parameters that do not fit the study's space: {dict(parameters)}") from error
    if set(params) != set(values):
        raise StudyError(f"NNI sent parameters that do not exist together: {dict(parameters)}")
    return params


def _on_steps(space: SearchSpace, params: Params) -> Params:
    """The parameters with each stepped number exactly on its grid: NNI compares choices to the last bit."""

    def nearest(name: str, value: Any) -> Any:
        parameter = space.parameters[name]
        if not isinstance(parameter, FloatParameter) or parameter.step is None:
            return value
        return min(parameter.grid(), key=lambda own: abs(own - value))

    return {name: nearest(name, value) for name, value in params.items()}


def _tree(space: SearchSpace, recipe: TrialConfig, names: Sequence[str], chosen: Params) -> Json:
    tree: Json = {}
    rest = list(names)
    while rest:
        name = rest.pop(0)
        parameter = space.parameters[name]
        if not parameter.is_active(lambda field: chosen.get(field, recipe.get(field))):
            continue
        inner = _dependents(space, name, rest)
        tree[name] = _specification(parameter)
        if inner:
            branches = [
                {"_name": _label(value), **_tree(space, recipe, inner, {**chosen, name: value})}
                for value in _branch_values(name, parameter, inner[0])
            ]
            tree[name] = {"_type": "choice", "_value": branches}
            rest = [other for other in rest if other not in inner]
    return tree


def _dependents(space: SearchSpace, name: str, rest: Sequence[str]) -> list[str]:
    """Those of `rest` that belong to the branches of `name`: its dependents, and what else these depend on."""
    fields = {other: {condition.field for condition in space.parameters[other].conditions} for other in rest}
    inner: set[str] = set()
    while True:
        grown = {other for other in rest if name in fields[other] or fields[other] & inner}
        grown |= {field for other in grown for field in fields[other] if field in rest}
        if grown <= inner:
            return [other for other in rest if other in inner]
        inner |= grown


def _specification(parameter: Parameter) -> Json:
    if isinstance(parameter, CategoricalParameter):
        return {"_type": "choice", "_value": list(parameter.choices)}
    if parameter.step != (None if isinstance(parameter, FloatParameter) else 1):
        return {"_type": "choice", "_value": list(parameter.grid())}
    if isinstance(parameter, FloatParameter):
        return {"_type": "loguniform" if parameter.log else "uniform", "_value": [parameter.low, parameter.high]}
    if parameter.log:
        return {"_type": "qloguniform", "_value": [parameter.low, parameter.high, 1]}
    return {"_type": "randint", "_value": [parameter.low, parameter.high + 1]}


def _branch_values(name: str, parameter: Parameter, dependent: str) -> list[Any]:
    values = list(parameter.grid())
    if not values or (isinstance(parameter, IntParameter) and parameter.log):
        raise ConfigError(
            f"parameters.{dependent}.when: NNI supports conditions only on listed values, not on {name}: {parameter}",
            f"give {name} choices or a step without log; or use the Optuna back end: `backend=optuna`",
        )
    if len({_label(value) for value in values}) < len(values):
        raise ConfigError(f"parameters.{name}: NNI compares choices as text, and these look the same: {values}")
    return values


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_nested(specification: Json) -> bool:
    return all(isinstance(value, dict) for value in specification["_value"])


def _chosen(specification: Json, value: Any) -> tuple[int, Any]:
    """The index of a value among a choice's, and the value: a branch if the choice is nested."""
    nested = _is_nested(specification)
    own = [branch["_name"] for branch in specification["_value"]] if nested else specification["_value"]
    index = own.index(_label(value) if nested else value)
    return index, specification["_value"][index]


def _filled(tree: Json, params: Params, write: Callable[[int, Json], Json]) -> Json:
    """A search space with a value in each place; `write` writes a choice from its index and value."""
    filled: Json = {}
    for name, specification in tree.items():
        if name == "_name":
            filled[name] = specification
        elif specification["_type"] != "choice":
            filled[name] = params[name]
        else:
            index, value = _chosen(specification, params[name])
            filled[name] = write(index, _filled(value, params, write) if _is_nested(specification) else value)
    return filled


def _flat(space: SearchSpace, parameters: Json) -> Iterator[tuple[str, Any]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            labels = {_label(own): own for own in space.parameters[name].grid()}
            yield name, labels[value["_name"]]
            yield from _flat(space, {key: inner for key, inner in value.items() if key != "_name"})
        else:
            yield name, value


def _own(parameter: Parameter, value: Any) -> Any:
    """A value of NNI in the space's type: node's JSON has no 1.0, and exp(log(x)) may leave the range by one bit."""
    if isinstance(parameter, CategoricalParameter):
        return next(choice for choice in parameter.choices if choice == value)
    if isinstance(parameter, IntParameter):
        return int(value)
    return min(max(float(value), parameter.low), parameter.high)
