"""The result of a trial: `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from elta_tune.errors import DamagedError
from elta_tune.records.reader import Count, Number, Scalar, Text, read_record

VERSION = 1
"""Of the schema of `result.json`. A file without one is of the first version."""
State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class RoundRecord:
    """A round of self-training: how many pseudo-labels it trained on, and why it was skipped.

    `diagnosis` are the metrics of the pseudo-labels if the pool has ratings, and the number of `images` with one.
    """

    round: Count
    pseudo_labels: Count
    skipped: Text | None = None
    diagnosis: Mapping[str, Number | None] | None = None


@dataclass(frozen=True)
class SplitRecord:
    """A split as a trial read it; `left_out` images could not be used, `hash` is of its images and ratings.

    `unlabelled` rows of the file were skipped because they have no rating.
    """

    split: Text
    origin: Text
    file: Text
    rows: Count
    hash: Text
    left_out: Count = 0
    unlabelled: Count = 0


@dataclass(frozen=True)
class Environment:
    """Where a result was measured."""

    device: Text
    device_name: Text
    threads: Count
    python: Text
    packages: dict[str, Text]
    commit: Text | None
    host: Text
    process: Count


@dataclass(frozen=True)
class ModelFacts:
    """What a model's output means: the ratings (K,) of its bins on the method's 1…10, None without a distribution;
    scale, threshold and tail cuts of the data set, and whether a high rating is a good one there.
    """

    bins: tuple[Number, ...] | None
    scale: tuple[Number, Number]
    threshold: Number
    tail_cuts: tuple[Number, Number]
    higher_is_better: bool = True


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended, and what its best epoch reached.

    `trial` is None outside a study. `value` and the `best_…` are None if no epoch has one. Data, environment and model
    are None if the trial's process could not write its own result; `nni_trial_id` is None under another back end.
    """

    trial: Count | None
    state: State
    reason: Text | None
    value: Number | None
    best_step: Count | None
    best_round: Count | None
    best_epoch: Count | None
    metrics: Mapping[str, Number | None]
    params: Mapping[str, Scalar]
    rounds: tuple[RoundRecord, ...]
    seconds: Number
    data: dict[str, SplitRecord] | None = None
    environment: Environment | None = None
    nni_trial_id: Text | None = None
    model: ModelFacts | None = None
    version: Count = VERSION

    @property
    def uses_budget(self) -> bool:
        """Whether the trial counts toward a study's budget: failed ones do not."""
        return self.state != "failed"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file; what is None only because it does not apply is left out."""
        content = asdict(self)
        for name in ("data", "environment", "nni_trial_id", "model"):
            if content[name] is None:
                del content[name]
        for entry in content["rounds"]:
            for name in ("skipped", "diagnosis"):
                if entry[name] is None:
                    del entry[name]
        return content

    @classmethod
    def from_dict(cls, content: object, place: str) -> TrialResult:
        """The inverse of `to_dict`.

        Raises:
            DamagedError: names the place and the first wrong field; or a newer version wrote it.
        """
        result = read_record(cls, content, place)
        if result.version > VERSION:
            raise DamagedError(f"{place}: a newer version of elta-tune wrote it", "update elta-tune")
        if missing := result._missing():
            raise DamagedError(f"{place}: is damaged: {missing}: is missing, or null")
        return result

    def _missing(self) -> str | None:
        """The first field that a result of this state, or with a model, should have."""
        names = ["value", "best_step", "best_round", "best_epoch"] if self.state == "complete" else []
        names += ["data", "environment"] if self.model is not None else []
        wanted = {name: getattr(self, name) for name in names}
        wanted |= {f"data.{split}": self.data.get(split) for split in ("train", "val")} if self.data is not None else {}
        return next((name for name, value in wanted.items() if value is None), None)
