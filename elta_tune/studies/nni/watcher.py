"""Follows a study that NNI runs, with the same events as a study under Optuna, and ends it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.errors import StudyError
from elta_tune.executors import Job, Reported
from elta_tune.files import damage_errors
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.studies.events import (
    ANY_FAILURES_IN_A_ROW,
    FAILURES_IN_A_ROW,
    Event,
    Finished,
    Started,
    Stopping,
    StopReason,
    Tick,
)
from elta_tune.studies.nni.experiment import NniJob, read_jobs, recorded_jobs
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import Node, end, kill
from elta_tune.studies.nni.rest import NodeGone
from elta_tune.studies.nni.space import decode
from elta_tune.studies.plan import StudyPlan, record_plan

if TYPE_CHECKING:  # a view of a study does without it
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot

WAITING = ("UNKNOWN", "ADD_RESUMED")
FAILED = ("FAILED", "USER_CANCELED", "SYS_CANCELED")
PAUSE = 0.5
"""Seconds between looks at node and the trials."""
SHARE = 20
"""The same in durations of a look, which node answers ever more slowly as the study grows."""


@dataclass
class NniRun:
    """A study that NNI runs now. `events()` follows it to its end, and ends node with all that it started."""

    folder: StudyFolder
    plan: StudyPlan
    node: Node
    workers: Workers
    resumed: bool = True
    attached: bool = True
    dataset: Dataset | None = None
    notes: Sequence[str] = ()
    ignored: Sequence[str] = ()
    seconds_before: float = 0.0
    stopped: StopReason | None = None
    interrupted: bool = False

    @property
    def slots(self) -> Sequence[Slot]:
        """Where its trials run."""
        return self.workers.slots

    @property
    def address(self) -> str | None:
        """The web UI's, with its secret."""
        return self.node.rest.url

    def raise_budget(self, plan: StudyPlan) -> None:
        """Records a plan with a larger budget, and has node go on to that."""
        record_plan(self.folder, plan, {})
        self.plan = plan
        budget = {"maxTrialNumber": plan.budget.trials}
        with suppress(NodeGone):  # it is ending, which whoever watches will see
            self.node.rest.put("experiment?update_type=MAX_TRIAL_NUM", {"params": budget})

    def events(self) -> Generator[Event, None, None]:
        """Watches until node has ended, and yields what happens.

        Raises:
            StudyError: NNI ended for another reason than the budget: a dead tuner, failures in a row, a kill.
        """
        nni, feed = NniFolder(self.folder), EventFeed(self.folder, self.plan, self.workers.cache)
        jobs: list[NniJob] = []
        try:
            while self.node.is_alive:
                began = time.monotonic()
                if self.interrupted and self.stopped is None:
                    self.stopped = "interrupted"
                    yield Stopping("now")
                    self.node.process.terminate()
                jobs = self._ask() or jobs
                yield from list(feed.since(jobs)) or [Tick()]
                time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))
            end(nni)
        except BaseException:  # a second Ctrl-C, say
            kill(nni)
            raise
        yield from feed.since(recorded_jobs(nni))
        if self.stopped is None and (wrong := fault(nni)) is not None:
            raise wrong

    def _ask(self) -> list[NniJob]:
        try:
            return read_jobs(self.node.rest.get("trial-jobs"), "NNI")
        except NodeGone:
            return []  # it ends


def reconcile(folder: StudyFolder, plan: StudyPlan) -> None:
    """Gives every trial of NNI's database its folder, and its `result.json` if it died unwatched.

    Node must have ended. The tuner of the next start knows by the folders which points were tried.
    """
    feed, jobs = EventFeed(folder, plan, Path()), recorded_jobs(NniFolder(folder))
    for _ in feed.since(jobs):
        pass
    for job in map(feed.job, jobs):
        trial = folder.trial(job.number)
        if not trial.config_file.exists():
            trial.create(job.config)


class EventFeed:
    """New events, read from the trials as NNI lists them and from their folders."""

    def __init__(self, folder: StudyFolder, plan: StudyPlan, cache: Path) -> None:
        self._folder, self._plan, self._cache = folder, plan, cache
        self._reported: dict[int, int] = {}
        self._done = {result.trial for result in folder.results()}

    def since(self, jobs: Iterable[NniJob]) -> Iterator[Event]:
        """Starts, epochs and results since the last call. A trial that died without a result is given one."""
        for job in jobs:
            if job.number not in self._done and job.status not in WAITING:
                yield from self._events(job)

    def _events(self, nni_job: NniJob) -> Iterator[Event]:
        number, trial = nni_job.number, self._folder.trial(nni_job.number)
        if number not in self._reported:
            job = self.job(nni_job)
            self._reported[number] = len(trial.epochs())
            yield Started(job, resumed=self._reported[number] > 0)
        for record in trial.epochs()[self._reported[number] :]:
            self._reported[number] += 1
            yield Reported(number, record)
        if nni_job.status in FAILED and trial.result() is None:
            self._fail(nni_job, trial)
        if (result := trial.result()) is not None:
            self._done.add(number)
            yield Finished(result)

    def _fail(self, nni_job: NniJob, trial: TrialFolder) -> None:
        job = self.job(nni_job)
        with damage_errors(trial.path):
            trial.create(job.config)
        by_hand = nni_job.status == "USER_CANCELED"
        reason = nni_job.message or ("cancelled in the web UI" if by_hand else "the process ended without a result")
        from elta_tune.trial import record_failure  # torch, which a view does not need

        record_failure(trial, reason, job.number, job.params, nni_trial_id=nni_job.id)

    def job(self, job: NniJob) -> Job:
        """A trial of NNI as a job of the study."""
        params = decode(self._plan.space, self._plan.recipe, job.proposal.parameters)
        config = self._plan.recipe.replace(params, source=f"trial {job.number}")
        return Job(job.number, config, params, self._folder.trial(job.number).path, self._cache)


def fault(nni: NniFolder) -> StudyError | None:
    """Why node ended, or None if the study is finished."""
    ending, again = nni.ended(), "`elta-tune run` resumes the study"
    if ending is None:
        return StudyError("NNI's node process was ended from outside", again)
    trials, log = nni.study.path / "trials", tuner_log(nni)
    faults = {
        "alike": (f"{FAILURES_IN_A_ROW} trials in a row failed alike: {ending.detail}", f"look into {trials}; {again}"),
        "failures": (
            f"{ANY_FAILURES_IN_A_ROW} trials in a row failed: {ending.detail}",
            f"look into {trials}; {again}",
        ),
        "halted": (str(ending.detail), "once that is fixed, the same command resumes the study"),
        "tuner": (f"NNI's tuner died{last_error(log)}", f"look into {log}; {again}"),
        "error": (f"NNI stopped: {ending.detail}{last_error(log)}", f"look into {nni.node_log}; {again}"),
    }
    return StudyError(*faults[ending.reason]) if ending.reason in faults else None


def tuner_log(nni: NniFolder) -> Path:
    """The log of the tuner; node's, if the tuner died before it opened its own."""
    return nni.dispatcher_log if nni.dispatcher_log.exists() else nni.node_log


def last_error(log: Path) -> str:
    """The last error in a log, as ``: ValueError: …``, or nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if "ERROR" in line or line.partition(":")[0].endswith("Error")]
    return f": {errors[-1]}" if errors else ""
