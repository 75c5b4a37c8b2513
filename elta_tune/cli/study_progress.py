"""How far a study is, from its events. The work per event depends on the workers, not on the trials that ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from elta_tune.cli.text import duration
from elta_tune.config import TrialConfig
from elta_tune.executors import Job, Reported
from elta_tune.records import EpochRecord, TrialResult
from elta_tune.studies.completion import trials_wanted
from elta_tune.studies.events import Event, Finished, Paused, Started, Stopping, Tick, Waiting
from elta_tune.studies.plan import StudyPlan

STOPPING = {
    "interrupted": "stopping after this epoch; Ctrl-C kills",
    "timeout": "time is up: stopping after this epoch",
    "fault": "can't go on: stopping after this epoch",
    "now": "stopping; Ctrl-C kills",
}


@dataclass
class Running:
    """A trial that runs, with its last epoch and the best value so far."""

    job: Job
    since: float
    last: EpochRecord | None = None
    best: float | None = None

    @property
    def place(self) -> str:
        """``round 1  epoch 2/3``."""
        return place_of(self.job.config, self.last)

    def value(self, name: str) -> float | None:
        """A metric of the last epoch."""
        return None if self.last is None else self.last.value(name)

    @property
    def whole_seconds(self) -> float | None:
        """How long the trial takes if its other epochs take as long as those so far."""
        last = self.last
        return None if last is None else last.elapsed / max(last.step, 1) * self.job.config.planned_epochs


def place_of(config: TrialConfig, record: EpochRecord | None) -> str:
    """Where an epoch stands: the round, if there are several, and the epoch within it."""
    round, epoch = (record.round, record.epoch) if record else (0, 0)
    stage = "head  " if round > config.self_training.rounds else f"round {round}  "
    return (stage if config.epochs_of(1) else "") + f"epoch {epoch}/{config.epochs_of(round)}"


class StudyProgress:
    """The state of a study, from its events.

    Args:
        results: of the trials that ended before.
        seconds_before: how long the study ran before, as far as its budget counts time.
    """

    def __init__(
        self, plan: StudyPlan, workers: int, results: Iterable[TrialResult] = (), seconds_before: float = 0.0
    ) -> None:
        self.plan, self.workers = plan, workers
        self.wanted = trials_wanted(plan)
        self.running: dict[int, Running] = {}
        self.states: Counter[str] = Counter()
        self.best: TrialResult | None = None
        self.stopping: str | None = None
        self.waiting: str | None = None
        self._objective = plan.space.objective
        self._seconds = 0.0  # of the trials that count toward the budget
        self._started = time.monotonic() - seconds_before
        for result in results:
            self._finish(result)

    def update(self, event: Event, epochs: Callable[[int], list[EpochRecord]]) -> None:
        """Takes an event; `epochs` reads what a resumed trial did before."""
        if not isinstance(event, Tick):
            self.waiting = event.reason if isinstance(event, Waiting) else None
        if isinstance(event, Started):
            running = self.running[event.job.number] = Running(event.job, time.monotonic())
            for record in epochs(event.job.number) if event.resumed else ():
                self._report(running, record)
        elif isinstance(event, Reported):
            self._report(self.running[event.number], event.record)
        elif isinstance(event, Finished):
            self.running.pop(event.result.trial or 0, None)
            self._finish(event.result)
        elif isinstance(event, Paused):
            self.running.pop(event.number, None)
        elif isinstance(event, Stopping):
            self.stopping = event.reason

    def _report(self, running: Running, record: EpochRecord) -> None:
        running.last, value = record, record.value(self._objective.metric)
        if self._objective.is_better(value, running.best):
            running.best = value

    def _finish(self, result: TrialResult) -> None:
        self.states[result.state] += 1
        if result.uses_budget:
            self._seconds += result.seconds
        best = None if self.best is None else self.best.value
        if result.state == "complete" and self._objective.is_better(result.value, best):
            self.best = result

    @property
    def used_budget(self) -> int:
        """Trials that count toward the budget."""
        return self.states["complete"] + self.states["pruned"]

    @property
    def seconds_left(self) -> float | None:
        """A guess from the trials so far, None before the first epoch and at the end."""
        now, used = time.monotonic(), self.used_budget
        lengths = [length for each in self.running.values() if (length := each.whole_seconds) is not None]
        if used >= self.wanted or not (used or lengths):
            return None
        length = self._seconds / used if used else sum(lengths) / len(lengths)
        trials = self.wanted - used
        spent = sum(min(now - running.since, length) for running in self.running.values())
        left: float = max(trials * length - spent, 0.0) / max(1, min(self.workers, trials))
        timeout = self.plan.budget.timeout
        return left if timeout is None else min(left, max(0.0, timeout - (now - self._started)))

    @property
    def fraction(self) -> str:
        """``3 of 12 trials``."""
        return f"{self.used_budget} of {self.wanted} trials"

    def summary(self) -> str:
        """One line: how far, how many pruned and failed, time left or why it stops."""
        parts = [self.fraction, *(f"{self.states[name]} {name}" for name in ("pruned", "failed") if self.states[name])]
        if self.stopping is not None:
            parts.append(STOPPING[self.stopping])
        elif self.waiting is not None:
            parts.append(f"waiting: {self.waiting}")
        elif (left := self.seconds_left) is not None:
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)
