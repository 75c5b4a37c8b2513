"""The Optuna back end: this process supervises the study."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.errors import StudyError
from elta_tune.records import StudyFolder
from elta_tune.studies.backend import LaunchOptions, RunningStudy, Say, StudyRequest, WebUI
from elta_tune.studies.completion import is_finished, is_space_used_up
from elta_tune.studies.events import Event, StopReason
from elta_tune.studies.launch import prepare_study, settle_finished, stop_holder, study_lock
from elta_tune.studies.plan import StudyPlan, record_plan
from elta_tune.studies.request import record_request, resolve_plan

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot
    from elta_tune.studies.optuna.supervisor import Supervisor


@dataclass
class OptunaRun:
    """A study that is ready: its trials start when `events` is called."""

    supervisor: Supervisor
    folder: StudyFolder
    plan: StudyPlan
    resumed: bool
    dataset: Dataset | None
    slots: Sequence[Slot]
    seconds_before: float
    attached: bool = False
    address: str | None = None
    notes: Sequence[str] = ()
    ignored: Sequence[str] = ()

    @property
    def interrupted(self) -> bool:
        """Whether a stop was asked for."""
        return self.supervisor.interrupted

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        self.supervisor.interrupted = value

    @property
    def stopped(self) -> StopReason | None:
        """Why the study ended early."""
        return self.supervisor.stopped

    def events(self) -> Generator[Event, None, None]:
        """Runs the study to its end."""
        return self.supervisor.events()

    def raise_budget(self, plan: StudyPlan) -> None:
        """Records a plan with a larger budget and continues up to it."""
        record_plan(self.folder, plan, {})
        self.plan = self.supervisor.study.plan = plan


class OptunaBackend:
    """Runs studies by Optuna's samplers and pruners, in `study.db`."""

    name = "optuna"
    samplers = ("tpe", "gp", "random", "qmc", "grid")
    pruners = ("median", "successive_halving", "hyperband", "none")
    has_ui = False

    def check_installed(self) -> None:
        """It always is."""

    def refusals(self, plan: StudyPlan) -> Iterator[str]:
        """None: it runs every plan with one of its samplers and pruners."""
        return iter(())

    @contextmanager
    def launch(self, request: StudyRequest, options: LaunchOptions) -> Iterator[RunningStudy | None]:
        """Holds a study and makes it ready to run; yields None where it is finished."""
        folder, cache = request.folder, options.cache.absolute()
        with study_lock(folder):
            plan, resumed, notes = resolve_plan(request), folder.exists(), folder.restart_damaged()
            if is_finished(folder, plan):
                settle_finished(folder, plan, options)
                from elta_tune.studies.optuna.study import OptunaStudy

                OptunaStudy(folder, plan, cache).unfinished()  # records in its database what a kill left unrecorded
                yield None
                return
            from elta_tune.executors import load_executor

            executor = load_executor(options.executor)
            executor.prepare()  # which imports what trials need while this process does
            slots, dataset = prepare_study(folder, plan, options)
            from elta_tune.studies.optuna.study import OptunaStudy
            from elta_tune.studies.optuna.supervisor import Supervisor

            record_request(request, plan, dataset)
            supervisor = Supervisor(OptunaStudy(folder, plan, cache), executor(slots))
            before = supervisor.study.seconds_run
            yield OptunaRun(supervisor, folder, plan, resumed, dataset, slots, before, notes=notes)

    def find_running(self, folder: StudyFolder) -> RunningStudy | None:
        """None: only the command that runs a study can follow it."""
        return None

    def open_ui(self, folder: StudyFolder, port: int | None) -> AbstractContextManager[WebUI]:
        """Raises: it has no web UI."""
        raise StudyError(f"study {folder.name} ran under optuna, which has no web UI", f"elta-tune show {folder.name}")

    def stop(self, folder: StudyFolder, say: Say) -> bool:
        """Ends the command that runs the study."""
        return stop_holder(folder, folder.lock_file, say)

    def check_storage(self, folder: StudyFolder, plan: StudyPlan) -> None:
        """Opens `study.db`, which restores what it lacks from the folders."""
        from elta_tune.studies.optuna.study import OptunaStudy

        OptunaStudy(folder, plan, Path()).unfinished()

    def is_exhausted(self, folder: StudyFolder, plan: StudyPlan) -> bool:
        """Whether each point of the space has its result."""
        return is_space_used_up(plan, folder.results())


BACKEND = OptunaBackend()
