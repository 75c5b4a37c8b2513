"""Optuna's samplers and pruners as a space selects them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    _get_single_value,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from elta_tune.space.parameters import Params
from elta_tune.studies.plan import StudyPlan

SAMPLER_DRAWS = 4
"""Points that the sampler proposes until one is new."""
RANDOM_DRAWS = 40
"""Random points after those, before the points that are left are listed."""


class Drawing:
    """A suggester that draws each value by a function of name and distribution, and keeps the distributions."""

    def __init__(self, draw: Callable[[str, BaseDistribution], Any]) -> None:
        self._draw = draw
        self.distributions: dict[str, BaseDistribution] = {}

    def _drawn(self, name: str, distribution: BaseDistribution) -> Any:
        self.distributions[name] = distribution
        return self._draw(name, distribution)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number between two bounds."""
        return float(self._drawn(name, FloatDistribution(low, high, log, step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer between two bounds."""
        return int(self._drawn(name, IntDistribution(low, high, log, step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some values."""
        return self._drawn(name, CategoricalDistribution(choices))


class ReplayableSampler(BaseSampler):
    """Gives each draw of each trial a sampler of its own, seeded by (study, trial, what is drawn).

    What a trial gets thus depends on the seed, its number and the trials before it alone, and not on what was drawn by
    the same process: a study that was cut off anywhere, even between two parameters, resumes as if it had not been.

    A point that another trial has is drawn again, with other seeds, as long as the space has others.
    """

    def __init__(self, plan: StudyPlan, tried: Container[Hashable]) -> None:
        self._plan, self._tried = plan, tried

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters: `sample_relative` draws whole points."""
        drawing = Drawing(lambda name, distribution: 0)
        for name, parameter in self._plan.space.parameters.items():
            parameter.suggest(drawing, name)
        return drawing.distributions

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> Params:
        """Draws a point that is new."""
        for attempt in range(SAMPLER_DRAWS + RANDOM_DRAWS):
            point = self._point(study, trial, attempt)
            if self._plan.space.point_key(point) not in self._tried:
                return point
        return self._last_resort(trial) or point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Is not called: each parameter is drawn with its point."""
        raise AssertionError(f"{param_name} was not drawn")

    def _point(self, study: Study, trial: FrozenTrial, attempt: int) -> Params:
        """The sampler's point, as Optuna's `Trial` draws one; in later attempts a random one."""
        together = self._sampler(trial, "together", attempt).infer_relative_search_space(study, trial)
        relative = self._sampler(trial, "together", attempt).sample_relative(study, trial, together)

        def draw(name: str, distribution: BaseDistribution) -> Any:
            if name in trial.params:  # before a kill
                return trial.params[name]
            if distribution.single():
                return _get_single_value(distribution)
            if name in relative and distribution._contains(distribution.to_internal_repr(relative[name])):
                return relative[name]
            return self._sampler(trial, name, attempt).sample_independent(study, trial, name, distribution)

        return self._plan.space.suggest(Drawing(draw), self._plan.recipe)

    def _sampler(self, trial: FrozenTrial, draw: str, attempt: int) -> BaseSampler:
        seed = self._seed(trial, draw, *([attempt] if attempt else []))
        return build_sampler(self._plan, trial.number, seed) if attempt < SAMPLER_DRAWS else RandomSampler(seed=seed)

    def _seed(self, trial: FrozenTrial, *draw: str | int) -> int:
        from elta_tune.training.seeding import (
            stage_seed,
        )  # torch, which recording results does not need

        return stage_seed(self._plan.recipe.seed, "sampler", trial.number, *draw) % 2**32

    def _last_resort(self, trial: FrozenTrial) -> Params | None:
        """One of the points that are left of a finite space."""
        space, recipe = self._plan.space, self._plan.recipe
        if not space.is_finite:
            return None
        left = [
            point
            for point in space.points(recipe)
            if space.point_key(point) not in self._tried
            and all(point.get(name) == value for name, value in trial.params.items())
        ]
        return left[self._seed(trial, "left") % len(left)] if left else None


class NumberedQMCSampler(QMCSampler):
    """Point n of the sequence for trial n; Optuna's own counts how often it was asked."""

    def __init__(self, number: int, sequence_seed: int, seed: int) -> None:
        others = RandomSampler(seed=seed)  # Optuna's default would draw the same in each trial
        super().__init__(scramble=True, seed=sequence_seed, independent_sampler=others)
        self._number = number

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


def build_sampler(plan: StudyPlan, number: int, seed: int) -> BaseSampler:
    """The space's sampler for one draw of a trial."""
    config, startup = plan.space.sampler, plan.sampler_startup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if config.name == "tpe":
            return TPESampler(n_startup_trials=startup, seed=seed)
        if config.name == "gp":
            return GPSampler(n_startup_trials=startup, seed=seed)
        if config.name == "qmc":
            return NumberedQMCSampler(number, plan.recipe.seed, seed)
        return RandomSampler(seed=seed)


def build_pruner(plan: StudyPlan) -> optuna.pruners.BasePruner:
    """The space's pruner; steps are epochs, counted from 1 across self-training rounds."""
    config, warmup = plan.space.pruner, plan.pruner_warmup
    if config.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=plan.pruner_startup, n_warmup_steps=warmup)
    if config.name == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup))
    if config.name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, warmup), max_resource=_longest(plan))
    return optuna.pruners.NopPruner()


def _longest(plan: StudyPlan) -> int:
    """Most epochs that a trial of the study can have."""

    def most(name: str) -> int:
        varied = plan.space.parameters.get(name)
        return max(int(value) for value in (plan.recipe.get(name), *(varied.probes() if varied else ())))

    rounds = most("self_training.rounds") * most("self_training.epochs")
    return most("training.epochs") + rounds + most("training.retrain_head_epochs")
