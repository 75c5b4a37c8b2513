"""A search space: the fields of a recipe that vary, the objective, the budget, the sampler and the pruner."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from elta_tune.config import Objective, TrialConfig
from elta_tune.documents import Section, field_error
from elta_tune.errors import ConfigError
from elta_tune.space.parameters import Choice, Parameter, Params, Suggester, Value


def _seconds(value: Any) -> Any:
    units = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([smhd]?)\s*", value)
    if not found:
        raise ValueError("should be a time such as 90s, 30m, 8h or 2d")
    return float(found[1]) * units[found[2]]


Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0, allow_inf_nan=False)]
"""Seconds, or text such as 90s, 30m, 8h, 2d."""


def parse_duration(text: str, source: str) -> float:
    """Seconds of a text such as 90m or 8h; errors name `source`.

    Raises:
        ConfigError: it is not a duration.
    """
    try:
        return TypeAdapter(Duration).validate_python(text)
    except ValidationError:
        raise ConfigError(f"{source} {text}: should be a time above 0 such as 90s, 30m, 8h or 2d") from None


class Budget(Section):
    """When the study ends: whichever comes first."""

    trials: Annotated[int, Field(ge=1)] = 20
    """Number of complete and pruned trials."""
    timeout: Duration | None = None
    """Total running time of the study over all its runs: seconds, or 90m, 8h, 2d."""


class SamplerConfig(Section):
    """The algorithm that proposes parameters."""

    name: Literal["tpe", "random", "grid", "gp", "qmc", "evolution"] = "tpe"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    """Random trials before `tpe`, `gp` or `evolution` learn (default: a third of the budget, 4 to 10)."""

    @model_validator(mode="after")
    def _live(self) -> SamplerConfig:
        if self.startup_trials is not None and self.name not in ("tpe", "gp", "evolution"):
            raise field_error(
                "startup_trials", f"has no effect with {self.name}, only with tpe, gp and evolution; remove it"
            )
        return self


class PrunerConfig(Section):
    """The rule that stops unpromising trials."""

    name: Literal["median", "successive_halving", "hyperband", "none"] = "median"
    startup_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials that end before `median` prunes any (default: a third of the budget, 3 to 8)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of a trial's epochs before it can be pruned."""

    @model_validator(mode="after")
    def _live(self) -> PrunerConfig:
        if self.startup_trials is not None and self.name != "median":
            raise field_error("startup_trials", f"has no effect with {self.name}, only with median; remove it")
        return self


Point = tuple[tuple[str, Value], ...]
"""Parameters that can be compared."""


class SearchSpace(Section):
    """The content of `search_spaces/*.yaml`."""

    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    objective: Objective = Objective()
    budget: Budget = Budget()
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    enqueue: tuple[dict[str, Choice], ...] = ()
    """Further first guesses, each the recipe with some changes."""

    @model_validator(mode="after")
    def _check(self) -> SearchSpace:
        if self.sampler.name == "gp" and self.pruner.name != "none":
            # Optuna's gp learns from complete trials only, so it would propose pruned points again and again.
            raise field_error("pruner.name", f"should be none with the gp sampler, not {self.pruner.name}")
        return self

    def with_objective(self, recipe: TrialConfig) -> TrialConfig:
        """The recipe whose best epoch is chosen by the space's objective.

        Raises:
            ConfigError: the recipe does not have that metric.
        """
        objective = self.objective
        return recipe.replace(
            {"evaluation.metric": objective.metric, "evaluation.direction": objective.resolved_direction}
        )

    def suggest(self, trial: Suggester, recipe: TrialConfig) -> Params:
        """Asks a trial for a value of each parameter that exists in it, in the order of the file."""
        values: Params = {}
        for name, parameter in self.parameters.items():
            if parameter.is_active(lambda field: values.get(field, recipe.get(field))):
                values[name] = parameter.suggest(trial, name)
        return values

    def guesses(self, recipe: TrialConfig) -> list[Params]:
        """The parameters of the first trials: the recipe as it is, then the guesses of `enqueue`."""
        own = {name: recipe.get(name) for name in self.parameters}
        return [self.choose({**own, **guess}, recipe) for guess in ({}, *self.enqueue)]

    def choose(self, values: Mapping[str, Value], recipe: TrialConfig) -> Params:
        """The parameters that exist in a trial, taken from `values`."""
        return self.suggest(_Fixed(values), recipe)

    def point_of(self, config: TrialConfig, recipe: TrialConfig) -> Params:
        """The parameters of a trial, by the configuration that it trains."""
        return self.choose({name: config.get(name) for name in self.parameters}, recipe)

    @property
    def is_finite(self) -> bool:
        """Whether its points can be counted. Each parameter exists in some trial, or the space were refused."""
        return all(parameter.count is not None for parameter in self.parameters.values())

    def points(self, recipe: TrialConfig) -> Iterator[Params]:
        """Every point of a finite space once, without parameters that do not exist in it; the last varies fastest."""
        return self._completed({}, list(self.parameters.items()), recipe)

    def _completed(self, values: Params, rest: list[tuple[str, Parameter]], recipe: TrialConfig) -> Iterator[Params]:
        if not rest:
            yield values
            return
        (name, parameter), rest = rest[0], rest[1:]
        if not parameter.is_active(lambda field: values.get(field, recipe.get(field))):
            yield from self._completed(values, rest, recipe)
            return
        for value in parameter.grid():
            yield from self._completed({**values, name: value}, rest, recipe)

    def grid(self, recipe: TrialConfig) -> list[Params]:
        """All `points`."""
        return list(self.points(recipe))

    def point_key(self, values: Mapping[str, Value]) -> Point:
        """What two trials share if they have the same parameters, however their numbers were rounded."""
        return tuple((name, each.key(values[name])) for name, each in self.parameters.items() if name in values)

    def without(self, names: Sequence[str]) -> SearchSpace:
        """The space with some parameters held at the recipe's value."""
        kept = {name: parameter for name, parameter in self.parameters.items() if name not in names}
        enqueue = tuple({name: value for name, value in guess.items() if name in kept} for guess in self.enqueue)
        return self.model_copy(update={"parameters": kept, "enqueue": enqueue})


class _Fixed:
    """A suggester with given values."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self.values: Mapping[str, Any] = values  # of the type that is asked for

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return float(self.values[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self.values[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.values[name]


def hold_without_pool(space: SearchSpace, recipe: TrialConfig) -> tuple[SearchSpace, TrialConfig, str | None]:
    """Sets self-training to 0 rounds and drops the parameters that depend on it, with a note that says so.

    There is nothing to label without a pool, and no distribution to sharpen with a head that predicts scores.
    """
    if recipe.data.has_pool and recipe.model.head == "emd":
        return space, recipe, None
    dead = [name for name, parameter in space.parameters.items() if _needs_rounds(name, parameter)]
    if not dead and recipe.self_training.rounds == 0:
        return space, recipe, None
    why = "no pool" if recipe.model.head == "emd" else "model.head: mse"
    note = f"{why}: self_training.rounds is held at 0" + (f"; not varied: {', '.join(dead)}" if dead else "")
    if len(dead) == len(space.parameters):
        raise ConfigError(f"{note}; nothing is left to vary", "name a pool: `data.pool=FILE`")
    return space.without(dead), recipe.replace({"self_training.rounds": 0}), note


def _needs_rounds(name: str, parameter: Parameter) -> bool:
    conditions = [condition for condition in parameter.conditions if condition.field == "self_training.rounds"]
    return name.partition(".")[0] in ("self_training", "sharpening") or not all(each.holds(0) for each in conditions)
