"""An epoch as it is recorded and reported, and the best one of a trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elta_tune.records.reader import Count, Number, read_record

PLACE = ("step", "round", "epoch", "best_step")


@dataclass(frozen=True)
class EpochRecord:
    """A line of `metrics.jsonl`.

    `step` counts from 1 across the rounds, `epoch` from 1 within its `round`; `best_step` is the best step so far.
    `values` are the validation metrics, and the means of what was measured in training; None is not a finite number.
    `elapsed` is in seconds from the start of the trial.
    """

    step: Count
    round: Count
    epoch: Count
    best_step: Count
    values: Mapping[str, Number | None]
    elapsed: Number

    def value(self, name: str) -> float:
        """A metric, NaN if it is not a finite number or was not measured."""
        value = self.values.get(name)
        return math.nan if value is None else value

    @property
    def pseudo_labels(self) -> int:
        """How many pseudo-labels the epoch trained on."""
        return int(self.values.get("pseudo_labels") or 0)

    def to_dict(self) -> dict[str, Any]:
        """The fields in one mapping, as in the file."""
        return {**{name: getattr(self, name) for name in PLACE}, **self.values, "elapsed": self.elapsed}

    @classmethod
    def from_dict(cls, content: object, place: str) -> EpochRecord:
        """The inverse of `to_dict`.

        Raises:
            DamagedError: names the place and the first wrong field.
        """
        if isinstance(content, Mapping):
            own = {name: content[name] for name in (*PLACE, "elapsed") if name in content}
            content = {**own, "values": {name: value for name, value in content.items() if name not in own}}
        return read_record(cls, content, place)


@dataclass(frozen=True)
class Best:
    """The best epoch so far; `value` is the metric that says so."""

    step: int
    round: int
    epoch: int
    value: float
    metrics: dict[str, float]
