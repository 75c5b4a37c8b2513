"""Who proposes parameters and who stops hopeless trials: the space's choice of Optuna's samplers and pruners."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from elta_tune.studies.plan import StudyPlan


class ReplayableSampler(BaseSampler):
    """Gives each draw of each trial a sampler of its own, seeded by (study, trial, what is drawn).

    What a trial gets thus depends on the seed, its number and the trials before it alone, and not on what was drawn by
    the same process: a study that was cut off anywhere, even between two parameters, goes on as if it had not been.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan

    def _sampler(self, trial: FrozenTrial, draw: str) -> BaseSampler:
        from elta_tune.training.seeding import stage_seed  # torch, which a study that only tells does not need

        seed = stage_seed(self._plan.recipe.seed, "sampler", trial.number, draw)
        return build_sampler(self._plan, trial.number, seed % 2**32)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The parameters that are drawn together."""
        return self._sampler(trial, "together").infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draws those."""
        return self._sampler(trial, "together").sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draws one of the others."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)


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
