"""Instant trials: an executor whose epochs follow a curve, for tests of studies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sample_records import epoch_record, trial_result

from elta_tune.executors import Ended, Job, Reported, Verdict
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.studies.optuna.study import OptunaStudy
from elta_tune.studies.optuna.supervisor import Supervisor
from elta_tune.studies.plan import StudyPlan

Table = Callable[[StudyFolder], list[tuple[Any, ...]]]
Database = Callable[[StudyFolder], list[dict[str, Any]]]
MakePlan = Callable[..., StudyPlan]

CONDITIONAL: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "mixup.alpha": {"type": "categorical", "choices": [0.5, 1.0, None]},
    "self_training.rounds": {"type": "int", "low": 0, "high": 2},
    "sharpening.temperature": {"type": "float", "low": 0.5, "high": 6, "when": "self_training.rounds > 0"},
}
"""A parameter of each kind, and one that depends on another."""


@dataclass
class CurveExecutor:
    """Runs trials in no time: `curve(job, step)` is the metric of an epoch; the folders are written as trainings do."""

    curve: Callable[[Job, int], float]
    slots: int = 1
    started: list[tuple[int, int]] = field(default_factory=list)
    """(trial, first step that it ran) of each start."""
    _jobs: dict[int, Job] = field(default_factory=dict)
    _ready: list[Reported | Ended] = field(default_factory=list)

    @property
    def running(self) -> Sequence[int]:
        return list(self._jobs)

    @property
    def has_room(self) -> bool:
        return len(self._jobs) < self.slots

    def start(self, job: Job) -> None:
        self._jobs[job.number] = job
        folder = TrialFolder(job.folder)
        if not folder.config_file.exists():
            folder.create(job.config)
        self.started.append((job.number, len(folder.epochs()) + 1))
        if folder.epochs():  # as a training does, that cannot know whether its last epoch was heard
            self._report(job.number)
        else:
            self._next(job.number)

    def wait(self, timeout: float) -> list[Reported | Ended]:
        ready, self._ready = self._ready, []
        for event in ready:
            if isinstance(event, Ended):
                del self._jobs[event.number]
        return ready

    def answer(self, number: int, verdict: Verdict) -> None:
        if verdict == "stop":
            self._ready.append(Ended(number, None))
        elif verdict == "prune":
            self._finish(number, "pruned")
        else:
            self._next(number)

    def close(self) -> None:
        self._jobs.clear()

    def _next(self, number: int) -> None:
        job = self._jobs[number]
        folder = TrialFolder(job.folder)
        step = len(folder.epochs()) + 1
        if step > job.config.planned_epochs:
            return self._finish(number, "complete")
        value = self.curve(job, step)
        folder.append(epoch_record(step, srcc=value, plcc=value, accuracy=value, elapsed=float(step)))
        return self._report(number)

    def _report(self, number: int) -> None:
        self._ready.append(Reported(number, TrialFolder(self._jobs[number].folder).epochs()[-1]))

    def _finish(self, number: int, state: str) -> None:
        job = self._jobs[number]
        epochs = TrialFolder(job.folder).epochs()
        best = max(epochs, key=lambda record: record.values["srcc"] or -1.0)
        value = best.values["srcc"]
        TrialFolder(job.folder).finish(
            trial_result(
                number,
                "failed" if value is None else state,
                value,
                reason="not a number" if value is None else None,
                best_step=best.step,
                params=job.params,
                metrics={name: best.values[name] for name in ("srcc", "plcc", "accuracy")},
            ),
            None,
        )
        self._ready.append(Ended(number, None))


def rising(job: Job, step: int) -> float:
    """A curve that is best at a learning rate of 0.01."""
    return 0.9 - 0.1 * abs(math.log10(job.config.optim.lr) + 2) - 0.1 / step


def run(
    folder: StudyFolder, plan: StudyPlan, curve: Callable[[Job, int], float] = rising, slots: int = 1
) -> CurveExecutor:
    """Runs a study to its end."""
    executor = CurveExecutor(curve, slots)
    for _ in Supervisor(OptunaStudy(folder, plan, Path("cache")), executor).events():
        pass
    return executor


def params(table: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [row[1] for row in table]
