"""The Optuna back end: asks for parameters, answers reports, tells results. One process alone calls it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import Trial, TrialState

from elta_tune.errors import StudyError
from elta_tune.executors import Job, Verdict
from elta_tune.records import EpochRecord, StudyFolder, TrialResult
from elta_tune.studies.completion import given_points
from elta_tune.studies.optuna.sampling import ReplayableSampler, build_pruner
from elta_tune.studies.plan import StudyPlan

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
ATTRIBUTES = ("srcc", "plcc", "accuracy", "reason")
"""What Optuna's own tools show of a trial; each costs a write, and its folder has the rest."""


@dataclass(frozen=True)
class OpenTrial:
    """A trial that runs: Optuna's side, ours, and the steps that it has reported."""

    trial: Trial
    job: Job
    reported: set[int]


class OptunaStudy:
    """A study in `study.db`."""

    def __init__(self, folder: StudyFolder, plan: StudyPlan, cache: Path) -> None:
        """Opens the study, or starts it.

        Raises:
            StudyError: its database can't be opened.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.plan, self.cache = folder, plan, cache
        try:
            self._study = optuna.create_study(
                study_name=folder.name,
                storage=_storage(folder.database.absolute()),
                direction=plan.space.objective.resolved_direction,
                sampler=ReplayableSampler(plan),
                pruner=build_pruner(plan),
                load_if_exists=True,
            )
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise StudyError(f"{folder.database}: can't be opened: {cause}") from error
        self._given = given_points(plan)
        self._open: dict[int, OpenTrial] = {}

    def unfinished(self) -> list[Job]:
        """Trials that an earlier supervisor left RUNNING. Those whose folder has a result are told it here."""
        jobs = []
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            opened = self._opened(Trial(self._study, frozen._trial_id), set(frozen.intermediate_values))
            folder = self.folder.trial(frozen.number)
            for line in folder.epochs():
                self._record(opened, line)
            if folder.result() is None:
                jobs.append(opened.job)
            else:
                folder.clear()  # a kill may have come right after the result
                self.tell(frozen.number)
        return jobs

    def ask(self) -> Job | None:
        """A new trial, or None once a grid is used up."""
        trials = self._study.get_trials(deepcopy=False)
        if not any(trial.state == TrialState.WAITING for trial in trials):
            if len(trials) < len(self._given):
                self._study.enqueue_trial(self._given[len(trials)])
            elif self.plan.space.sampler.name == "grid":
                return None
        return self._opened(self._study.ask(), set()).job

    def observe(self, number: int, record: EpochRecord) -> Verdict:
        """Takes an epoch of a running trial and says whether it may go on. Trial 0, the recipe, always may."""
        opened = self._open[number]
        self._record(opened, record)
        if number == 0 or record.step >= opened.job.config.planned_epochs:
            return "go on"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where a trial reported nothing but NaN
            return "prune" if opened.trial.should_prune() else "go on"

    def job(self, number: int) -> Job:
        """The job of a trial that has not been told."""
        return self._open[number].job

    def tell(self, number: int) -> TrialResult:
        """Closes a trial with the result in its folder, and returns that."""
        result = self.folder.trial(number).result()
        if result is None:
            raise AssertionError(f"trial {number} has no result to tell")
        trial = self._open.pop(number).trial
        for name in ATTRIBUTES:
            if (value := result.reason if name == "reason" else result.metrics.get(name)) is not None:
                trial.set_user_attr(name, value)
        if result.state == "complete":
            self._study.tell(trial, result.value)
        else:
            state = TrialState.PRUNED if result.state == "pruned" else TrialState.FAIL
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

    def _opened(self, trial: Trial, reported: set[int]) -> OpenTrial:
        params = self.plan.space.suggest(trial, self.plan.recipe)
        config = self.plan.recipe.replace(params, source=f"trial {trial.number}")
        job = Job(trial.number, config, params, self.folder.trial(trial.number).path, self.cache)
        self._open[trial.number] = OpenTrial(trial, job, reported)
        return self._open[trial.number]

    def _record(self, opened: OpenTrial, record: EpochRecord) -> None:
        if record.step not in opened.reported:
            opened.trial.report(record.value(self.plan.space.objective.metric), record.step)
            opened.reported.add(record.step)


def _storage(database: Path) -> optuna.storages.RDBStorage:
    """SQLite that waits for a reader, such as a dashboard, rather than giving up."""
    url = sqlalchemy.URL.create("sqlite", database=str(database)).render_as_string()
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
