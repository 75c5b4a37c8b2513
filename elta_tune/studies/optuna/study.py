"""The Optuna back end: asks for parameters, answers reports, records results. Only one process calls it."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import sqlalchemy
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from elta_tune.errors import DamagedError, StudyError
from elta_tune.executors import Job, Verdict
from elta_tune.files import atomic_path
from elta_tune.records import EpochRecord, StudyFolder, TrialResult
from elta_tune.space.parameters import Params
from elta_tune.studies.completion import given_points
from elta_tune.studies.optuna.restore import restored_trials
from elta_tune.studies.optuna.sampling import ReplayableSampler, build_pruner
from elta_tune.studies.plan import StudyPlan, read_facts

ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
AGAIN = "once that is fixed, the same command resumes the study"
ATTRIBUTES = ("srcc", "plcc", "accuracy", "reason")
"""What Optuna's own tools show of a trial; each costs a write, and its folder has the rest."""


@dataclass(frozen=True)
class OpenTrial:
    """A running trial: Optuna's trial, its job, and the steps that it has reported."""

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
        space = plan.space
        self._given = given_points(plan)
        self._tried = {space.point_key(point) for point in self._given}
        self._left = space.points(plan.recipe) if space.is_finite else None
        self._next: Params | None = {}
        with database_errors(folder, UNREADABLE):
            self._study = open_study(folder, plan, ReplayableSampler(plan, self._tried))
            trials = self._study.get_trials(deepcopy=False)
        self._count = len(trials)
        self._waiting = sum(trial.state == TrialState.WAITING for trial in trials)
        self._tried |= {space.point_key(trial.params) for trial in trials}
        self._ended = sum(trial.state in ENDED for trial in trials)
        self._open: dict[int, OpenTrial] = {}

    def unfinished(self) -> list[Job]:
        """Trials that an earlier supervisor left RUNNING. If a folder has a result, it is recorded here."""
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
        """A new trial, or None once the space is used up."""
        with database_errors(self.folder):
            if not self._waiting and self._count < len(self._given):
                self._study.enqueue_trial(self._given[self._count])
            elif self._is_used_up():
                return None
            elif self._waiting:
                self._waiting -= 1
                self._count -= 1
            self._count += 1
            return self._opened(self._study.ask(), set()).job

    def _is_used_up(self) -> bool:
        """Whether each point of the space is some trial's. None gets free again, so it looks on from the last."""
        if self._left is None or self._waiting:
            return False
        while self._next is not None and (self._next == {} or self.plan.space.point_key(self._next) in self._tried):
            self._next = next(self._left, None)
        return self._next is None

    def observe(self, number: int, record: EpochRecord) -> Verdict:
        """Records an epoch of a running trial and decides if it may continue. Trial 0, the recipe, always may."""
        opened = self._open[number]
        with database_errors(self.folder):
            self._record(opened, record)
        if number == 0 or record.step >= opened.job.config.planned_epochs:
            return "go on"
        with database_errors(self.folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where a trial reported only NaN
            return "prune" if opened.trial.should_prune() else "go on"

    def job(self, number: int) -> Job:
        """The job of a trial that has no recorded result yet."""
        return self._open[number].job

    def tell(self, number: int) -> TrialResult:
        """Closes a trial with the result in its folder, and returns that."""
        result = self.folder.trial(number).result()
        if result is None:
            raise AssertionError(f"trial {number} has no result to record")
        trial = self._open.pop(number).trial
        with database_errors(self.folder):
            for name in ATTRIBUTES:
                if (value := result.reason if name == "reason" else result.metrics.get(name)) is not None:
                    trial.set_user_attr(name, value)
            self._ended += result.uses_budget
            if result.state == "complete":
                self._study.tell(trial, result.value)
            else:
                state = TrialState.PRUNED if result.state == "pruned" else TrialState.FAIL
                self._study.tell(trial, state=state)
        return result

    def ended(self) -> int:
        """How many trials count toward the budget: complete or pruned."""
        return self._ended

    @property
    def seconds_run(self) -> float:
        """How long supervisors have run the study, in total."""
        return float(self._study.user_attrs.get("seconds_run", 0.0))

    @seconds_run.setter
    def seconds_run(self, seconds: float) -> None:
        with database_errors(self.folder):
            self._study.set_user_attr("seconds_run", seconds)

    def _opened(self, trial: Trial, reported: set[int]) -> OpenTrial:
        params = self.plan.space.suggest(trial, self.plan.recipe)
        self._tried.add(self.plan.space.point_key(params))
        config = self.plan.recipe.replace(params, source=f"trial {trial.number}")
        job = Job(trial.number, config, params, self.folder.trial(trial.number).path, self.cache)
        self._open[trial.number] = OpenTrial(trial, job, reported)
        return self._open[trial.number]

    def _record(self, opened: OpenTrial, record: EpochRecord) -> None:
        if record.step not in opened.reported:
            opened.trial.report(record.value(self.plan.space.objective.metric), record.step)
            opened.reported.add(record.step)


def open_study(folder: StudyFolder, plan: StudyPlan, sampler: BaseSampler) -> optuna.Study:
    """Opens the only study of `study.db`, under any name, or creates it, and restores it from the folders.

    Raises:
        DamagedError: it holds more than one, or a folder's parameters are no point of the space.
    """
    study = _open(folder.database, study_name(folder), plan, sampler)
    trials = restored_trials(folder, plan, study.get_trials(deepcopy=False))
    if trials is None:
        return study
    with atomic_path(folder.database) as file:
        again = _open(file, study.study_name, plan, sampler)
        for key, value in study.user_attrs.items():
            again.set_user_attr(key, value)
        for trial in trials:
            again.add_trial(trial)
        _close(again)
    _close(study)
    return _open(folder.database, study.study_name, plan, sampler)


def _open(database: Path, name: str, plan: StudyPlan, sampler: BaseSampler) -> optuna.Study:
    url = sqlalchemy.URL.create("sqlite", database=str(database.absolute())).render_as_string()
    # SQLite waits for a reader, such as a dashboard, rather than giving up.
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
    names = [study.study_name for study in storage.get_all_studies()]
    if len(names) > 1:
        hint = repair_hint(StudyFolder(database.parent))
        raise DamagedError(f"{database}: holds {len(names)} studies: {', '.join(names)}", hint)
    return optuna.create_study(
        study_name=names[0] if names else name,
        storage=storage,
        direction=plan.space.objective.resolved_direction,
        sampler=sampler,
        pruner=build_pruner(plan),
        load_if_exists=True,
    )


def _close(study: optuna.Study) -> None:
    study._storage.remove_session()
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]


def study_name(folder: StudyFolder) -> str:
    """The name that the study was started with: Optuna's hyperband depends on it, so a moved folder keeps it."""
    return str(read_facts(folder).get("study", folder.name)) if folder.exists() else folder.name


def repair_hint(folder: StudyFolder) -> str:
    """What to type where a database is damaged."""
    return f"make it again from the folders of the trials: elta-tune repair {folder.name}"


UNREADABLE = (LookupError, ValueError, TypeError, AttributeError, RuntimeError)
"""What Optuna raises where a cell can't be read or the tables are of another version."""


@contextmanager
def database_errors(folder: StudyFolder, damage: tuple[type[Exception], ...] = (KeyError,)) -> Iterator[None]:
    """Raises one error of the tool that names the file for what SQLite, SQLAlchemy and Optuna raise.

    Args:
        damage: further errors that a damaged database raises within; KeyError is a missing row's.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, sqlite3.Error) as error:
        cause: BaseException = error
        while (inner := getattr(cause, "orig", None) or cause.__cause__) is not None:
            cause = inner
        name, text = getattr(cause, "sqlite_errorname", ""), (str(cause) or type(cause).__name__).splitlines()[0]
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise StudyError(f"{folder.database}: is locked by another program", AGAIN) from error
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")) or not name:
            raise DamagedError(f"{folder.database}: is damaged: {text}", repair_hint(folder)) from error
        raise StudyError(f"{folder.database}: {text}", AGAIN) from error
    except damage as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DamagedError(f"{folder.database}: can't be read: {text}", repair_hint(folder)) from error
