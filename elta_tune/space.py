"""A search space: which fields of a recipe vary, towards what, with which budget.

It may only name live fields (each change of one must be able to change a result), and it contains the recipe's
value of every field it varies: trial 0 is the recipe as it stands.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import yaml
from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from elta_tune.config import FIELDS, Switch, TrialConfig, switch_of
from elta_tune.documents import Document, Section, parse, read_document
from elta_tune.errors import ConfigError, did_you_mean
from elta_tune.method.metrics import DIRECTIONS

Choice = bool | int | float | str | None
Get = Callable[[str], Any]

FIXED_SECTIONS = ("seed", "data", "evaluation")
"""What is measured, and with which random numbers, is the same for all trials of a study."""

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "in": lambda value, options: value in options,
}


class Suggester(Protocol):
    """What a back end's trial can do (Optuna's `Trial` as it is)."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number between two bounds."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer between two bounds."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some values."""
        ...


@dataclass(frozen=True)
class Condition:
    """`field operator value`, e.g. ``self_training.rounds > 0``."""

    field: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads ``field operator value``."""
        found = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<|\bin\b)\s*(.+?)\s*", text)
        if not found:
            raise ValueError("should look like `self_training.rounds > 0`")
        return cls(found[1], found[2], yaml.safe_load(found[3]))

    def holds(self, value: Any) -> bool:
        """Whether the field's value fulfils it."""
        try:
            return OPERATORS[self.operator](value, self.value)
        except TypeError:  # null is neither above nor below anything
            return False


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Conditional(Section):
    """What all kinds of parameters share."""

    when: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    """Conditions that must all hold for the parameter to exist, e.g. `self_training.rounds > 0`."""

    @field_validator("when")
    @classmethod
    def _readable(cls, when: tuple[str, ...]) -> tuple[str, ...]:
        for text in when:
            Condition.parse(text)
        return when

    @property
    def conditions(self) -> list[Condition]:
        """`when`, read."""
        return [Condition.parse(text) for text in self.when]

    def is_active(self, get: Get) -> bool:
        """Whether the parameter exists, given the values of other fields."""
        return all(condition.holds(get(condition.field)) for condition in self.conditions)


class FloatParameter(Conditional):
    """A real number between two bounds, both inclusive."""

    type: Literal["float"]
    low: float
    high: float
    """`0.2x` is a fifth of the recipe's value, here and in `low`."""
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> FloatParameter:
        _check_range(self.low, self.high, self.log)
        if self.step is not None and self.log:
            raise ValueError("log and step exclude each other")
        return self

    def suggest(self, trial: Suggester, name: str) -> float:
        """Asks a trial for a value."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range: its ends and an odd point between."""
        return [self.low, self.high] if self.step else [self.low, self.low + 0.382 * (self.high - self.low), self.high]

    def grid(self) -> list[Any] | None:
        """All values, or None where they can't be counted."""
        if self.step is None:
            return [self.low] if self.low == self.high else None
        count = int((self.high - self.low) / self.step + 1e-8) + 1
        return [self.low + index * self.step for index in range(count)]

    def __str__(self) -> str:
        return f"{self.low:g} … {self.high:g}" + (" (log)" if self.log else "") + _when(self)


class IntParameter(Conditional):
    """An integer between two bounds, both inclusive."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check(self) -> IntParameter:
        _check_range(self.low, self.high, self.log)
        if self.step != 1 and self.log:
            raise ValueError("log and step exclude each other")
        return self

    def suggest(self, trial: Suggester, name: str) -> int:
        """Asks a trial for a value."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        return isinstance(value, int) and not isinstance(value, bool) and value in self.grid()

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range."""
        return [self.low, self.grid()[-1]]

    def grid(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    def __str__(self) -> str:
        return f"{self.low} … {self.high}" + (f" by {self.step}" if self.step != 1 else "") + _when(self)


class CategoricalParameter(Conditional):
    """One of some values; null is one too."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]

    def suggest(self, trial: Suggester, name: str) -> Any:
        """Asks a trial for a value."""
        return trial.suggest_categorical(name, self.choices)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        return value in self.choices

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range."""
        return list(self.choices)

    def grid(self) -> list[Any]:
        """All values."""
        return list(self.choices)

    def __str__(self) -> str:
        return ", ".join("null" if choice is None else f"{choice}" for choice in self.choices) + _when(self)


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


Parameter = Annotated[
    Annotated[FloatParameter, Tag("float")]
    | Annotated[IntParameter, Tag("int")]
    | Annotated[CategoricalParameter, Tag("categorical")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="type should be float, int or categorical"),
]


def _when(parameter: Conditional) -> str:
    return f"  when {' and '.join(parameter.when)}" if parameter.when else ""


def _check_range(low: float, high: float, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low}) should be at most high ({high})")
    if log and low <= 0:
        raise ValueError(f"low should be above 0 on a log scale, not {low}")


def _seconds(value: Any) -> Any:
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([smhd]?)\s*", value) if isinstance(value, str) else None
    return float(found[1]) * units[found[2]] if found else value


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""Seconds, or text as 90s, 30m, 8h, 2d."""


def parse_duration(text: str, source: str) -> float:
    """Seconds of a text such as 90m or 8h; `source` is named in the error.

    Raises:
        ConfigError: it is no duration.
    """
    try:
        return TypeAdapter(Duration).validate_python(text)
    except ValidationError:
        raise ConfigError(f"{source} {text}: should be a time above 0 such as 90s, 30m, 8h or 2d") from None


UNDIRECTED = ("std_ratio", "bias_low", "bias_mid", "bias_high")
"""Metrics without a better side of their own."""


class Objective(Section):
    """What the study optimises: a validation metric of the exported checkpoint."""

    metric: str = "srcc"
    direction: Literal["maximize", "minimize"] | None = None
    """Left out, the metric's own: srcc rises, mae falls."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        known = (*DIRECTIONS, *UNDIRECTED)
        if metric not in known:
            raise ValueError(f"should be a validation metric{did_you_mean(metric, known)}: {', '.join(known)}")
        return metric

    @model_validator(mode="after")
    def _check(self) -> Objective:
        if self.direction is None and self.metric in UNDIRECTED:
            raise ValueError(f"direction: {self.metric} has no better side of its own: say maximize or minimize")
        return self

    @property
    def towards(self) -> Literal["maximize", "minimize"]:
        """The direction in force."""
        direction = self.direction or DIRECTIONS.get(self.metric)
        return "maximize" if direction == "maximize" else "minimize"


class Budget(Section):
    """When the study ends: whichever comes first."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Trials that ended complete or pruned."""
    timeout: Duration | None = None
    """Time that the study has run, all its runs together: seconds, or 90m, 8h, 2d."""


class SamplerConfig(Section):
    """Who proposes parameters."""

    name: Literal["tpe", "random", "grid", "gp", "qmc"] = "tpe"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    """Random trials before `tpe` or `gp` learn (default: a third of the budget, 4 to 10)."""


class PrunerConfig(Section):
    """Who stops hopeless trials."""

    name: Literal["median", "successive_halving", "hyperband", "none"] = "median"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials that end before `median` prunes any (default: a third of the budget, 3 to 8)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a trial's epochs that it may always run."""


class SearchSpace(Section):
    """The content of `search_spaces/*.yaml`."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    objective: Objective = Objective()
    budget: Budget = Budget()
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    enqueue: tuple[dict[str, Choice], ...] = ()
    """Further first guesses, each the recipe with some changes."""

    def suggest(self, trial: Suggester, recipe: TrialConfig) -> dict[str, Any]:
        """Asks a trial for the value of each parameter that exists in it, in the order of the file."""
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.is_active(lambda field: values.get(field, recipe.get(field))):
                values[name] = parameter.suggest(trial, name)
        return values

    def guesses(self, recipe: TrialConfig) -> list[dict[str, Any]]:
        """The parameters of the first trials: the recipe as it stands, then the space's own guesses."""
        own = {name: recipe.get(name) for name in self.parameters}
        return [self.choose({**own, **guess}, recipe) for guess in ({}, *self.enqueue)]

    def choose(self, values: Mapping[str, Any], recipe: TrialConfig) -> dict[str, Any]:
        """The parameters that exist in a trial, taken from `values`."""
        return self.suggest(_Fixed(values), recipe)

    def grid(self, recipe: TrialConfig) -> list[dict[str, Any]]:
        """Every combination, each once, what does not exist in it left out; the spaces's last parameter runs first."""
        points: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
        axes = [[(name, value) for value in axis.grid() or ()] for name, axis in self.parameters.items()]
        for combination in itertools.product(*axes):
            point = self.choose(dict(combination), recipe)
            points.setdefault(tuple(point.items()), point)
        return list(points.values())

    def without(self, names: Sequence[str]) -> SearchSpace:
        """The space with some parameters held at the recipe's value."""
        kept = {name: parameter for name, parameter in self.parameters.items() if name not in names}
        enqueue = tuple({name: value for name, value in guess.items() if name in kept} for guess in self.enqueue)
        return self.model_copy(update={"parameters": kept, "enqueue": enqueue})


class _Fixed:
    """A suggester that has all its answers."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.values[name]


def load_space(path: Path, recipe: TrialConfig) -> SearchSpace:
    """Reads a space and checks it against a recipe.

    Raises:
        ConfigError: every wrong field at once, with its line.
    """
    document = _with_relative_bounds(read_document(path), recipe)
    problems = list(_bad_names(document))
    try:
        space = _with_field_types(parse(SearchSpace, document), recipe)
        problems += _problems(space, recipe)
    except ConfigError as error:
        raise ConfigError("\n".join([*_placed(document, problems), error.message])) from None
    if problems:
        raise ConfigError("\n".join(_placed(document, problems)))
    return space


def _placed(document: Document, problems: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{document.place(key)}: {key}: {text}" for key, text in problems]


def hold_without_pool(space: SearchSpace, recipe: TrialConfig) -> tuple[SearchSpace, TrialConfig, str | None]:
    """Holds self-training at 0 rounds where there is no pool, drops what hangs on it, and says so in one line."""
    if recipe.data.has_pool:
        return space, recipe, None
    dead = [name for name in space.parameters if name.partition(".")[0] in ("self_training", "sharpening")]
    if not dead and recipe.self_training.rounds == 0:
        return space, recipe, None
    note = "no pool: self_training.rounds is held at 0" + (f"; not varied: {', '.join(dead)}" if dead else "")
    if len(dead) == len(space.parameters):
        raise ConfigError(f"{note}; nothing is left to vary", "name a pool: --set data.pool=FILE")
    return space.without(dead), recipe.replace({"self_training.rounds": 0}), note


def _with_relative_bounds(document: Document, recipe: TrialConfig) -> Document:
    """`low: 0.2x` becomes a fifth of the recipe's value."""
    parameters = document.content.get("parameters")
    if not isinstance(parameters, dict):
        return document

    def absolute(name: str, bound: Any) -> Any:
        factor = re.fullmatch(r"([\d.eE+-]+)x", bound) if isinstance(bound, str) else None
        value = recipe.get(name) if factor and name in FIELDS else None
        return float(f"{float(factor[1]) * value:.6g}") if factor and isinstance(value, int | float) else bound

    resolved = {
        name: {key: absolute(name, value) for key, value in body.items()} if isinstance(body, dict) else body
        for name, body in parameters.items()
    }
    return replace(document, content={**document.content, "parameters": resolved})


def _with_field_types(space: SearchSpace, recipe: TrialConfig) -> SearchSpace:
    """Choices as the field's own type: YAML's 1e-5 is text, 1 is no float."""

    def typed(name: str, parameter: Any) -> Any:
        if not isinstance(parameter, CategoricalParameter):
            return parameter
        values = [_built(recipe, name, choice) for choice in parameter.choices]
        if any(isinstance(value, ConfigError) for value in values):
            return parameter  # told by `_problems`
        return parameter.model_copy(update={"choices": tuple(value.get(name) for value in values)})

    parameters = {name: typed(name, parameter) for name, parameter in space.parameters.items()}
    return space.model_copy(update={"parameters": parameters})


def _built(recipe: TrialConfig, name: str, value: Any) -> Any:
    try:
        return recipe.replace({name: value})
    except ConfigError as error:
        return error


def _bad_names(document: Document) -> Iterator[tuple[str, str]]:
    """Parameters that no recipe has, or that a study may not vary."""
    parameters = document.content.get("parameters")
    for name in parameters if isinstance(parameters, dict) else ():
        if name not in FIELDS:
            yield f"parameters.{name}", f"a recipe has no such field{did_you_mean(str(name), FIELDS)}"
        elif name.partition(".")[0] in FIXED_SECTIONS:
            rule = "decides what is measured; it is the same for all trials, so set it in the recipe"
            yield f"parameters.{name}", rule


def _problems(space: SearchSpace, recipe: TrialConfig) -> Iterator[tuple[str, str]]:
    """Dotted keys of a space and what is wrong with their content."""
    seen: list[str] = []
    for name, parameter in space.parameters.items():
        key = f"parameters.{name}"
        if name not in FIELDS or name.partition(".")[0] in FIXED_SECTIONS:
            continue
        yield from ((key, text) for text in _bad_values(recipe, name, parameter))
        yield from ((f"{key}.when", text) for text in _bad_conditions(parameter, seen, space))
        if text := _dead(space, recipe, name, parameter):
            yield key, text
        seen.append(name)
    for number, guess in enumerate(space.enqueue):
        for name, value in guess.items():
            if name not in space.parameters:
                yield "enqueue", f"guess {number + 1}: {name} is not varied{did_you_mean(name, space.parameters)}"
            elif not space.parameters[name].contains(value):
                yield "enqueue", f"guess {number + 1}: {name}: {value!r} is outside {space.parameters[name]}"
    if space.sampler.name == "grid":
        for name, parameter in space.parameters.items():
            if parameter.grid() is None:
                yield f"parameters.{name}", "the grid sampler needs a step or choices"


def _bad_values(recipe: TrialConfig, name: str, parameter: Any) -> Iterator[str]:
    choices = getattr(parameter, "choices", ())
    if len(set(choices)) < len(choices):
        yield f"a choice stands twice in {list(choices)}"
    for value in parameter.probes():
        built = _built(recipe, name, value)
        if isinstance(built, ConfigError):
            yield str(built).partition(": ")[2].removeprefix(f"{name}: ")
            return
    if not parameter.contains(recipe.get(name)):
        yield f"the recipe's own value {recipe.get(name)!r} is outside {parameter}; trial 0 is the recipe"


def _bad_conditions(parameter: Any, seen: list[str], space: SearchSpace) -> Iterator[str]:
    for condition in parameter.conditions:
        if condition.field not in FIELDS:
            yield f"a recipe has no field {condition.field}{did_you_mean(condition.field, FIELDS)}"
        elif condition.field in space.parameters and condition.field not in seen:
            yield f"{condition.field} should stand above what depends on it"


def _dead(space: SearchSpace, recipe: TrialConfig, name: str, parameter: Any) -> str | None:
    """Why some trial could not feel the parameter, or None."""
    switch: Switch | None = switch_of(name)
    if switch is None:
        return None
    varied = space.parameters.get(switch.switch)
    values = list(varied.grid() or varied.probes()) if varied else [recipe.get(switch.switch)]
    if varied and varied.when:
        values.append(recipe.get(switch.switch))
    conditions = [condition for condition in parameter.conditions if condition.field == switch.switch]
    reachable = [value for value in values if all(condition.holds(value) for condition in conditions)]
    off = [value for value in reachable if not switch.is_on(value)]
    if not reachable:
        return f"its condition never holds: {switch.switch} is {values[0]!r} in the recipe and not varied"
    if off and varied:
        return f"has no effect where {switch.switch} is {off[0]!r}; add `when: {switch.switch} {switch.rule}`"
    if off:
        return (
            f"has no effect while {switch.switch} is {off[0]!r} in the recipe; "
            f"vary {switch.switch} too, or switch it on with --set {switch.switch}=…"
        )
    return None
