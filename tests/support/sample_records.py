"""Records that tests write: an epoch and a result, with defaults for what a test does not need."""

from __future__ import annotations

from typing import Any

from elta_tune.records import EpochRecord, TrialResult


def epoch_record(
    step: int, *, best_step: int | None = None, elapsed: float = 0.0, **values: float | None
) -> EpochRecord:
    """An epoch of round 0, by default the best so far."""
    return EpochRecord(step, 0, step, step if best_step is None else best_step, values, elapsed)


def trial_result(
    trial: int | None = 0, state: Any = "complete", value: float | None = 0.5, **fields: Any
) -> TrialResult:
    """The result of a trial; a failed one has no value and a reason."""
    if state == "failed":
        value, fields = None, {"reason": "why", **fields}
    best = None if value is None else 1
    places = {"best_step": best, "best_round": value and 0, "best_epoch": best}
    defaults = {"reason": None, **places, "metrics": {}, "params": {}, "rounds": (), "seconds": 1.0}
    return TrialResult(trial, state, value=value, **{**defaults, **fields})
