"""Seconds that the live view spends per event in studies of 100 and 1,000 trials: their ratio should be near 1.

uv run python benchmarks/live_view.py
"""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from elta_tune.cli.live import LiveView
from elta_tune.cli.study_progress import StudyProgress
from elta_tune.config import TrialConfig
from elta_tune.executors import Job
from elta_tune.records import TrialResult
from elta_tune.space.space import SearchSpace
from elta_tune.studies.events import Finished, Started
from elta_tune.studies.plan import make_plan

SIZES = (100, 1000)
MEASURED = 50
"""Trials at the end of a study, whose events are measured."""


def seconds_per_event(trials: int) -> float:
    """Mean time of an event at the end of a study of so many trials."""
    parameters = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}}
    space = SearchSpace.model_validate({"budget": {"trials": trials}, "parameters": parameters})
    plan = make_plan(space, TrialConfig())
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    view = LiveView(StudyProgress(plan, 2), console, lambda number: [])
    with view.live:
        for number in range(trials):
            if number == trials - MEASURED:
                start = time.perf_counter()
            view.show(Started(Job(number, plan.recipe, {"optim.lr": 1e-3}, Path(), Path()), resumed=False))
            view.show(Finished(result(number)))
    return (time.perf_counter() - start) / (2 * MEASURED)


def result(number: int) -> TrialResult:
    """A complete trial."""
    return TrialResult(
        trial=number,
        state="complete",
        reason=None,
        value=0.5,
        best_step=1,
        best_round=0,
        best_epoch=1,
        metrics={"srcc": 0.5, "plcc": 0.5, "accuracy": 0.5},
        params={"optim.lr": 1e-3},
        rounds=(),
        seconds=10.0,
    )


if __name__ == "__main__":
    small, large = (seconds_per_event(trials) for trials in SIZES)
    print(f"{SIZES[0]} trials: {small * 1e3:.2f} ms an event; {SIZES[1]} trials: {large * 1e3:.2f} ms")
    print(f"ratio: {large / small:.2f}")
