"""The Optuna back end: asks for parameters, answers reports, tells results. One process alone calls it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from elta_tune.executors import Job, Verdict
from elta_tune.records import StudyFolder
from elta_tune.studies.plan import StudyPlan
from elta_tune.training.seeding import stage_seed

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class OpenTrial:
    """A trial that runs: Optuna's side, ours, and the steps that it has reported."""

    trial: Trial
    job: Job
    reported: set[int]


class OptunaStudy:
    """A study in `study.db`.

    Each trial is proposed by a sampler seeded with (seed, its number): a study that was interrupted goes on as if it
    had not been.
    """

    def __init__(self, folder: StudyFolder, plan: StudyPlan, cache: Path) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.plan, self.cache = folder, plan, cache
        self._study = optuna.create_study(
            study_name=folder.name,
            storage=f"sqlite:///{folder.database.absolute()}",
            direction=plan.space.objective.towards,
            pruner=build_pruner(plan),
            load_if_exists=True,
        )
        self._points = self._enqueue_guesses()
        self._open: dict[int, OpenTrial] = {}

    def unfinished(self) -> list[Job]:
        """Trials that an earlier supervisor left RUNNING. Those whose folder has a result are told it here."""
        jobs = []
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._seed_sampler(frozen.number)
            opened = self._opened(Trial(self._study, frozen._trial_id), set(frozen.intermediate_values))
            for line in self.folder.trial(frozen.number).epochs():
                self._record(opened, line["step"], line)
            if self.folder.trial(frozen.number).result() is None:
                jobs.append(opened.job)
            else:
                self.tell(frozen.number)
        return jobs

    def ask(self) -> Job | None:
        """A new trial, or None once a grid is used up."""
        number = len(self._study.get_trials(deepcopy=False))
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if self._points is not None and not waiting:
            return None
        self._seed_sampler(waiting[0].number if waiting else number)
        return self._opened(self._study.ask(), set()).job

    def observe(self, number: int, step: int, metrics: Mapping[str, float]) -> Verdict:
        """Takes an epoch of a running trial and says whether it may go on. Trial 0, the recipe, always may."""
        opened = self._open[number]
        self._record(opened, step, metrics)
        if number == 0 or step >= opened.job.config.planned_epochs:
            return "go on"
        return "prune" if opened.trial.should_prune() else "go on"

    def job(self, number: int) -> Job:
        """The job of a trial that has not been told."""
        return self._open[number].job

    def tell(self, number: int) -> dict[str, Any]:
        """Closes a trial with the `result.json` in its folder, and returns that."""
        result = self.folder.trial(number).result()
        if result is None:
            raise AssertionError(f"trial {number} has no result to tell")
        trial = self._open.pop(number).trial
        for name, value in result["metrics"].items():
            trial.set_user_attr(name, value)
        if result["reason"]:
            trial.set_user_attr("reason", result["reason"])
        if result["state"] == "complete":
            self._study.tell(trial, result["value"])
        else:
            state = TrialState.PRUNED if result["state"] == "pruned" else TrialState.FAIL
            self._study.tell(trial, state=state)
        return result

    def ended(self) -> int:
        """How many trials count toward the budget: complete or pruned."""
        return len(self._study.get_trials(deepcopy=False, states=ENDED))

    @property
    def seconds_run(self) -> float:
        """How long supervisors have run the study, all together."""
        return float(self._study.user_attrs.get("seconds_run", 0.0))

    @seconds_run.setter
    def seconds_run(self, seconds: float) -> None:
        self._study.set_user_attr("seconds_run", seconds)

    @property
    def grid_size(self) -> int | None:
        """Combinations of a grid study, else None."""
        return self._points

    def _opened(self, trial: Trial, reported: set[int]) -> OpenTrial:
        params = self.plan.space.suggest(trial, self.plan.recipe)
        config = self.plan.recipe.replace(params, source=f"trial {trial.number}")
        job = Job(trial.number, config, params, self.folder.trial(trial.number).path, self.cache)
        self._open[trial.number] = OpenTrial(trial, job, reported)
        return self._open[trial.number]

    def _record(self, opened: OpenTrial, step: int, metrics: Mapping[str, float]) -> None:
        if step not in opened.reported:
            value = metrics[self.plan.space.objective.metric]
            opened.trial.report(math.nan if value is None else value, step)
            opened.reported.add(step)

    def _seed_sampler(self, number: int) -> None:
        self._study.sampler = build_sampler(self.plan, stage_seed(self.plan.recipe.seed, "sampler", number) % 2**32)

    def _enqueue_guesses(self) -> int | None:
        """The recipe first, then `enqueue:`, then a whole grid; returns the grid's size."""
        space, recipe = self.plan.space, self.plan.recipe
        guesses = space.guesses(recipe)
        points = space.grid(recipe) if space.sampler.name == "grid" else None
        known = [trial.system_attrs.get("fixed_params") for trial in self._study.get_trials(deepcopy=False)]
        seen = {tuple(guess.items()) for guess in known if guess is not None}
        for guess in (*guesses, *(points or ())):
            if tuple(guess.items()) not in seen:
                self._study.enqueue_trial(guess)
                seen.add(tuple(guess.items()))
        return None if points is None else len(points)


def build_sampler(plan: StudyPlan, seed: int) -> optuna.samplers.BaseSampler:
    """The space's sampler. Start-up trials fit the budget: Optuna's 10 would make a short study a random search."""
    config = plan.space.sampler
    startup = config.startup_trials or min(10, max(4, plan.budget.trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.name == "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed)
        if config.name == "gp":
            return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
        if config.name == "qmc":
            return optuna.samplers.QMCSampler(seed=plan.recipe.seed, scramble=True)
        return optuna.samplers.RandomSampler(seed=seed)  # also beside a grid, whose points are all enqueued


def build_pruner(plan: StudyPlan) -> optuna.pruners.BasePruner:
    """The space's pruner; steps are epochs, counted from 1 across self-training rounds."""
    config, epochs = plan.space.pruner, plan.recipe.training.epochs
    warmup = math.ceil(config.warmup * epochs)
    startup = config.startup_trials or min(8, max(3, plan.budget.trials // 3))
    if config.name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
    if config.name == "successive_halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, warmup))
    if config.name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, warmup), max_resource=max(_longest(plan), 1))
    return optuna.pruners.NopPruner()


def _longest(plan: StudyPlan) -> int:
    """Most epochs that a trial of the study can have."""
    rounds = plan.space.parameters.get("self_training.rounds")
    values: list[Any] = [plan.recipe.self_training.rounds, *(rounds.probes() if rounds else ())]
    return plan.recipe.training.epochs + int(max(values)) * plan.recipe.self_training.epochs
