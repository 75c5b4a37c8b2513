"""The check of a search space against a recipe.

A space may name only live fields (each change of one must be able to change a result), and it contains the recipe's
value of every field it varies: trial 0 is the unchanged recipe.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elta_tune.config import FIELDS, TrialConfig, switch_of
from elta_tune.documents import Document, parse, read_document, shown
from elta_tune.errors import ConfigError
from elta_tune.space.parameters import CategoricalParameter, Condition, Parameter, Params
from elta_tune.space.space import SearchSpace, hold_without_pool
from elta_tune.suggestions import suggest_field

FIXED_SECTIONS = ("seed", "data", "evaluation")
"""What is measured, and with which random numbers, is the same for all trials of a study."""

RELATIVE = re.compile(r"(\d+\.?\d*(?:[eE][+-]?\d+)?)x")
"""`0.2x`: a fifth of the recipe's value."""

LARGEST_GRID = 10_000
"""Combinations that a grid study may have: all of them are queued when it starts."""


def load_space(path: Path, recipe: TrialConfig) -> SearchSpace:
    """Reads a space and checks it against a recipe.

    Raises:
        ConfigError: every wrong field at once, with its line.
    """
    return check_space(read_document(path), recipe)


def check_space(document: Document, recipe: TrialConfig) -> SearchSpace:
    """Builds the space of a document, checked against a recipe.

    Raises:
        ConfigError: as `load_space`.
    """
    document = _with_relative_bounds(document, recipe)
    problems = list(_bad_names(document))
    try:
        space = _with_field_types(parse(SearchSpace, document), recipe)
    except ConfigError as error:
        if (sound := _sound_part(document)) is not None:
            problems += _problems(_varied(_with_field_types(sound, recipe), recipe), recipe)
        raise ConfigError("\n".join([*_placed(document, problems), error.message])) from None
    varied = _varied(space, recipe)
    problems += _problems(varied, recipe)
    if not problems:  # else its combinations can't be built
        problems += _bad_combinations(varied, space.with_objective(recipe))
    if problems:
        raise ConfigError("\n".join(_placed(document, problems)))
    return space


def _placed(document: Document, problems: Iterable[tuple[str, str]]) -> list[str]:
    ordered = sorted(problems, key=lambda problem: document.line(problem[0]))
    return [f"{document.place(key)}: {key}: {text}" for key, text in ordered]


def _sound_part(document: Document) -> SearchSpace | None:
    """The readable part of a space that has unreadable parts: the parameters that depend on none of those."""

    def read(parts: Mapping[str, Any]) -> SearchSpace | None:
        try:
            return SearchSpace.model_validate(parts)
        except ValidationError:
            return None

    given = document.content.get("parameters")
    given = given if isinstance(given, dict) else {}
    sound = {"parameters": {name: body for name, body in given.items() if read({"parameters": {name: body}})}}
    for key, value in document.content.items():
        sound = {**sound, key: value} if key not in sound and read({**sound, key: value}) else sound
    if (space := read(sound)) is None:
        return None
    lost = given.keys() - sound["parameters"].keys()
    return space.without([name for name, one in space.parameters.items() if lost & {*_decisive_fields(name, one)}])


def _varied(space: SearchSpace, recipe: TrialConfig) -> SearchSpace:
    """What varies with this recipe's head: one that predicts scores has no self-training. (A pool may come later.)"""
    return space if recipe.model.head == "emd" else hold_without_pool(space, recipe)[0]


def _with_relative_bounds(document: Document, recipe: TrialConfig) -> Document:
    """`low: 0.2x` becomes a fifth of the recipe's value. If that is not a number, the bound stays, and is refused."""
    parameters = document.content.get("parameters")
    if not isinstance(parameters, dict):
        return document

    def absolute(name: str, bound: Any) -> Any:
        factor = RELATIVE.fullmatch(bound) if isinstance(bound, str) else None
        value = recipe.get(name) if name in FIELDS else 1  # an unknown name is reported by `_bad_names`
        if factor is None or isinstance(value, bool) or not isinstance(value, int | float):
            return bound
        return float(f"{float(factor[1]) * value:.12g}")  # 0.1 · 5e-4 is 5e-5

    resolved = {
        name: {key: absolute(name, value) for key, value in body.items()} if isinstance(body, dict) else body
        for name, body in parameters.items()
    }
    return replace(document, content={**document.content, "parameters": resolved})


def _with_field_types(space: SearchSpace, recipe: TrialConfig) -> SearchSpace:
    """Choices and guesses as the field's own type: 1 becomes 1.0 in a field of real numbers."""

    def typed(name: str, value: Any) -> Any:
        built = _built(recipe, name, value) if name in FIELDS else None
        return built.get(name) if isinstance(built, TrialConfig) else value  # `_problems` reports it

    def chosen(name: str, parameter: Parameter) -> Parameter:
        if not isinstance(parameter, CategoricalParameter):
            return parameter
        choices = tuple(typed(name, choice) for choice in parameter.choices)
        return parameter.model_copy(update={"choices": choices})

    parameters = {name: chosen(name, parameter) for name, parameter in space.parameters.items()}
    enqueue = tuple({name: typed(name, value) for name, value in guess.items()} for guess in space.enqueue)
    return space.model_copy(update={"parameters": parameters, "enqueue": enqueue})


def _built(recipe: TrialConfig, name: str, value: Any) -> TrialConfig | str:
    """The recipe with another value of a field, or why that is not possible."""
    try:
        return recipe.replace({name: value})
    except ConfigError as error:
        return error.message.partition(": ")[2].removeprefix(f"{name}: ") + _only_bounds(value)


def _only_bounds(value: Any) -> str:
    """A note for a refused value that would be valid as a bound."""
    is_relative = isinstance(value, str) and RELATIVE.fullmatch(value)
    return "; only low and high may be relative to the recipe's value" if is_relative else ""


def _is_fixed(name: str) -> bool:
    return name.partition(".")[0] in FIXED_SECTIONS


def _bad_names(document: Document) -> Iterator[tuple[str, str]]:
    """Parameters that no recipe has, or that a study may not vary."""
    parameters = document.content.get("parameters")
    for name in parameters if isinstance(parameters, dict) else ():
        if name not in FIELDS:
            yield f"parameters.{name}", f"a recipe has no such field{suggest_field(name, FIELDS)}"
        elif _is_fixed(name):
            rule = "decides what is measured; it is the same for all trials, so set it in the recipe"
            yield f"parameters.{name}", rule


def _problems(space: SearchSpace, recipe: TrialConfig) -> Iterator[tuple[str, str]]:
    """Dotted keys of a space and what is wrong with each of them alone."""
    try:
        recipe = space.with_objective(recipe)
    except ConfigError as error:
        yield "objective.metric", error.message.rpartition("evaluation.metric: ")[2]
    varied = {name: one for name, one in space.parameters.items() if name in FIELDS and not _is_fixed(name)}
    bad_values = {name: list(_bad_values(recipe, name, parameter)) for name, parameter in varied.items()}
    seen: list[str] = []
    for name, parameter in varied.items():
        bad_conditions = list(_bad_conditions(parameter, seen, space))
        yield from ((f"parameters.{name}", text) for text in bad_values[name])
        yield from ((f"parameters.{name}.when", text) for text in bad_conditions)
        decisive = _decisive_fields(name, parameter)
        if not bad_conditions and not any(bad_values.get(field) for field in decisive):
            yield from ((f"parameters.{name}", text) for text in _dead(space, recipe, name, parameter))
        seen.append(name)
    for number, guess in enumerate(space.enqueue):
        for name, value in guess.items():
            if name not in space.parameters:
                yield f"enqueue.{number}.{name}", f"is not varied{suggest_field(name, space.parameters)}"
            elif not space.parameters[name].contains(value):
                text = f"{shown(value)} is outside {space.parameters[name]}{_only_bounds(value)}"
                yield f"enqueue.{number}.{name}", text
    if space.sampler.name == "grid":
        yield from _bad_grid(space)


def _bad_values(recipe: TrialConfig, name: str, parameter: Parameter) -> Iterator[str]:
    choices = getattr(parameter, "choices", ())
    if len(set(choices)) < len(choices):
        yield f"duplicate choices: {list(choices)}"
    built = [_built(recipe, name, value) for value in parameter.probes()]
    problems = list(dict.fromkeys(each for each in built if isinstance(each, str)))
    yield from problems
    if not problems and not parameter.contains(recipe.get(name)):
        yield _outside(name, recipe.get(name), parameter)


def _outside(name: str, value: Any, parameter: Parameter) -> str:
    other = next((probe for probe in parameter.probes() if probe is not None), None)
    remedies = [f"start from another recipe: `{name}={shown(other)}`"]
    if isinstance(parameter, CategoricalParameter):
        remedies.insert(0, f"add {shown(value)} to the choices")
    elif value is not None:
        remedies.insert(0, "widen the range")
    rule = f"the recipe's value {shown(value)} is outside {parameter}, and trial 0 trains the recipe"
    return f"{rule}: {', or '.join(remedies)}"


def _bad_conditions(parameter: Parameter, seen: Sequence[str], space: SearchSpace) -> Iterator[str]:
    for condition in parameter.conditions:
        if condition.field not in FIELDS:
            yield f"a recipe has no field {condition.field}{suggest_field(condition.field, FIELDS)}"
        elif condition.field in space.parameters and condition.field not in seen:
            yield f"depends on {condition.field}, which should be defined above it"


def _decisive_fields(name: str, parameter: Parameter) -> list[str]:
    """The fields that decide whether a parameter exists and acts."""
    switch = switch_of(name)
    return list(dict.fromkeys([*(each.field for each in parameter.conditions), *([switch.switch] if switch else ())]))


def _dead(space: SearchSpace, recipe: TrialConfig, name: str, parameter: Parameter) -> Iterator[str]:
    """Why the parameter has no effect in any trial, or in some trials that have it."""
    switch = switch_of(name)
    for field in _decisive_fields(name, parameter):
        varied = space.parameters.get(field)
        conditions = [condition for condition in parameter.conditions if condition.field == field]
        reachable = _reachable(varied, recipe.get(field), conditions)
        off = [value for value in reachable if switch and switch.switch == field and not switch.is_on(value)]
        if not reachable:
            found = (
                f"varies over {varied}" if varied else f"is {shown(recipe.get(field))} in the recipe and is not varied"
            )
            yield f"its condition never holds: {field} {found}"
        elif off and varied and switch:
            yield f"has no effect where {field} is {shown(off[0])}; add `when: {field} {switch.rule}`"
        elif off:
            yield (
                f"has no effect while {field} is {shown(off[0])} in the recipe; "
                f"vary {field} too, or set another value in the recipe: `{field}=VALUE`"
            )


def _reachable(varied: Parameter | None, own: Any, conditions: Sequence[Condition]) -> list[Any]:
    """Values that a field can have in trials in which the conditions on it hold; `own` is the recipe's."""
    values = [own]
    if varied is not None:
        marks = [each.value for each in conditions]
        flat = itertools.chain.from_iterable(mark if isinstance(mark, list) else [mark] for mark in marks)
        values = list(varied.boundary_values(flat))
    return [value for value in values if all(condition.holds(value) for condition in conditions)]


def _bad_grid(space: SearchSpace) -> Iterator[tuple[str, str]]:
    counts = {name: parameter.count for name, parameter in space.parameters.items()}
    for name, count in counts.items():
        if count is None:
            yield f"parameters.{name}", "the grid sampler needs a step or choices; add one, or use another sampler"
    if (size := math.prod(count or 1 for count in counts.values())) > LARGEST_GRID:
        remedy = f"the limit is {LARGEST_GRID:,}: use larger steps or another sampler"
        yield "sampler.name", f"a grid of {size:,} combinations is too large; {remedy}"


def _bad_combinations(space: SearchSpace, recipe: TrialConfig) -> Iterator[tuple[str, str]]:
    """Pairs of parameters, and guesses, whose values fit alone but not together."""
    own = {name: recipe.get(name) for name in space.parameters}
    for first, second in itertools.combinations(space.parameters, 2):
        for pair in itertools.product(space.parameters[first].probes(), space.parameters[second].probes()):
            point = space.choose({**own, first: pair[0], second: pair[1]}, recipe)
            if text := _clash(recipe, point):
                where = f"where {first} is {shown(pair[0])} and {second} is {shown(pair[1])}"
                yield f"parameters.{second}", f"{where}: {text}"
                break
    for number, (guess, point) in enumerate(zip(space.enqueue, space.guesses(recipe)[1:], strict=True)):
        for name in guess:
            if name not in point:
                yield (
                    f"enqueue.{number}.{name}",
                    "does not exist in this guess, because its `when` does not hold: remove it from the guess",
                )
        if text := _clash(recipe, point):
            yield f"enqueue.{number}", text


def _clash(recipe: TrialConfig, point: Params) -> str | None:
    try:
        recipe.replace(point)
    except ConfigError as error:
        return error.message.partition(": ")[2]
    return None
