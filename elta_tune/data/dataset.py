"""A data set as trainings see it: splits with labels, perhaps a pool without, and their cached images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.batches import SplitImages
from elta_tune.data.images import fingerprint
from elta_tune.method.scores import RatingScale


@dataclass(frozen=True)
class ImageSet:
    """Images that a training reads: the pool, or a `Split`.

    Attributes:
        origin: which rows of `file` these are, in words.
        ids: (N,) text.
        images: (N) by their edge in pixels.
        left_out: id and reason of each image that is missing or unreadable; such images are not among the N.
    """

    name: str
    file: Path
    origin: str
    ids: NDArray[np.object_]
    images: Mapping[int, SplitImages]
    left_out: tuple[tuple[str, str], ...]

    @property
    def fingerprint(self) -> str:
        """A hash of the ids."""
        return fingerprint(self.ids, None)


@dataclass(frozen=True)
class Split(ImageSet):
    """The training, validation or test split: `scores` (N,) and `distributions` (N, K) on the data set's own scale.

    `unlabelled` rows of its file were skipped because they have no rating.
    """

    scores: NDArray[np.float64]
    distributions: NDArray[np.float32] | None
    unlabelled: int = 0

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and scores."""
        return fingerprint(self.ids, self.scores)


@dataclass(frozen=True)
class Dataset:
    """The splits that were asked for.

    `bins` (K,) are the ratings of a distribution's columns; `is_spread` where distributions were made from scores.
    """

    train: Split
    val: Split
    test: Split | None
    pool: ImageSet | None
    bins: NDArray[np.float64] | None
    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float]
    is_spread: bool = False
    higher_is_better: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def rating_scale(self) -> RatingScale:
        """What metrics on these data are measured by."""
        return RatingScale(self.scale, self.threshold, self.tail_cuts, self.is_spread, self.higher_is_better)
