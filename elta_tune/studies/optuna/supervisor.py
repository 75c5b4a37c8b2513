"""The supervisor: one process owns a study, asks, starts trials, receives their epochs, answers and tells."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from elta_tune.errors import StudyError
from elta_tune.executors import Ended, Executor, Halted, Heard, Job, Reported, Verdict
from elta_tune.records import TrialFolder, TrialResult
from elta_tune.studies.events import (
    ANY_FAILURES_IN_A_ROW,
    FAILURES_IN_A_ROW,
    Event,
    Finished,
    Paused,
    Retried,
    Started,
    Stopping,
    StopReason,
    Tick,
    cause_of,
)

if TYPE_CHECKING:  # a view of the events needs no Optuna, whose import takes a second
    from elta_tune.studies.optuna.study import OptunaStudy

RETRIES = 2
"""How often a trial whose process died is resumed without a new epoch in between."""
TICK = 0.25
"""Seconds between looks at the clock."""


@dataclass
class Supervisor:
    """Runs a study until its budget is used or someone stops it; `events()` does all of it.

    Afterwards `stopped` says why it ended early; None means that the budget (or the grid) is used up. If the study
    can't continue, `events()` raises the cause, once the running trials have saved their epoch.
    """

    study: OptunaStudy
    executor: Executor
    stopped: StopReason | None = None
    interrupted: bool = False
    """Set from outside, by a signal's handler say, it asks for a stop after the running epochs."""
    _queue: deque[Job] = field(default_factory=deque)
    _deaths: dict[int, tuple[int, int]] = field(default_factory=dict)
    _failures: list[str] = field(default_factory=list)
    _fault: StudyError | None = None

    def events(self) -> Generator[Event, None, None]:
        """Runs the study and yields what happens.

        Raises:
            StudyError: trials fail in a row, or the machine lets none go on.
        """
        before, started = self.study.seconds_run, time.monotonic()

        def seconds() -> float:
            return before + time.monotonic() - started

        try:
            self._queue.extend(self.study.unfinished())
            while True:
                if reason := self._reason_to_stop(seconds()):
                    self.stopped = reason
                    yield Stopping(reason)
                yield from self._fill()
                if not self.executor.running:
                    if self._fault is not None:
                        raise self._fault
                    self.study.seconds_run = seconds()
                    return
                heard = self.executor.wait(TICK)
                for event in heard:
                    yield from self._answer(event)
                if self._fault is None and any(isinstance(event, Ended) for event in heard):
                    self.study.seconds_run = seconds()  # a kill then loses only the time of the running trials
                if not heard:
                    yield Tick()
        finally:
            self.executor.close()

    def _reason_to_stop(self, seconds: float) -> Literal["interrupted", "timeout"] | None:
        timeout = self.study.plan.budget.timeout
        if self.stopped:
            return None
        if self.interrupted:
            return "interrupted"
        return "timeout" if timeout is not None and seconds >= timeout else None

    def _fill(self) -> Iterator[Event]:
        while self.executor.has_room and not self.stopped:
            resumed = bool(self._queue)
            try:
                job = self._queue.popleft() if resumed else self._ask()
            except StudyError as error:
                yield from self._halt(error)
                return
            if job is None:
                return
            self.executor.start(job)
            yield Started(job, resumed)

    def _ask(self) -> Job | None:
        under_way = self.study.ended() + len(self.executor.running)
        return self.study.ask() if under_way < self.study.plan.budget.trials else None

    def _answer(self, event: Heard) -> Iterator[Event]:
        if isinstance(event, Halted):
            problem = f"trial {event.number} can't continue: {event.reason}"
            yield from self._halt(StudyError(problem, "once that is fixed, the same command resumes the study"))
            yield Paused(event.number)
            return
        if isinstance(event, Reported):
            verdict: Verdict = "go on"
            try:
                verdict = self.study.observe(event.number, event.record)
            except StudyError as error:  # the folder has the epoch: the next start reports it
                yield from self._halt(error)
            has_more = event.record.step < self.study.job(event.number).config.planned_epochs
            self.executor.answer(event.number, "stop" if self.stopped and verdict == "go on" and has_more else verdict)
            yield event
            return
        folder = self.study.folder.trial(event.number)
        if folder.result() is None:
            if self.stopped:
                yield Paused(event.number)
                return
            fault = event.fault or "the process ended without a result"
            if not self._give_up(event.number, folder):
                self._queue.append(self.study.job(event.number))
                yield Retried(event.number, fault)
                return
            folder.path.mkdir(parents=True, exist_ok=True)  # which the process may not have lived to do
            from elta_tune.trial import record_failure

            reason, params = f"{fault}, {RETRIES + 1} times", self.study.job(event.number).params
            record_failure(folder, reason, event.number, params)
        try:
            result = self.study.tell(event.number)
        except StudyError as error:  # the folder has the result: the next start records it
            yield from self._halt(error)
            return
        yield Finished(result)
        yield from self._watch_failures(result)

    def _give_up(self, number: int, folder: TrialFolder) -> bool:
        """Counts deaths without a new epoch in between."""
        epochs = len(folder.epochs())
        deaths, at = self._deaths.get(number, (0, -1))
        deaths = deaths + 1 if epochs == at else 1
        self._deaths[number] = (deaths, epochs)
        return deaths > RETRIES

    def _halt(self, fault: StudyError) -> Iterator[Event]:
        """Starts no more trials; the running ones save their epoch."""
        self._fault = self._fault or fault
        if not self.stopped:
            self.stopped = "fault"
            yield Stopping("fault")

    def _watch_failures(self, result: TrialResult) -> Iterator[Event]:
        """Stops a study whose trials fail in a row: a few of them alike, or more of any kind."""
        if result.state != "failed":
            self._failures.clear()
            return
        self._failures.append(cause_of(result.reason or ""))
        count = len(self._failures)
        alike = self._failures[-FAILURES_IN_A_ROW:] == [self._failures[-1]] * FAILURES_IN_A_ROW
        if alike or count == ANY_FAILURES_IN_A_ROW:
            log = self.study.folder.trial(result.trial or 0).log_file
            problem = f"{FAILURES_IN_A_ROW if alike else count} trials in a row failed{' alike' if alike else ''}"
            hint = f"look into {log}; `elta-tune run` resumes the study"
            yield from self._halt(StudyError(f"{problem}: {result.reason}", hint))
