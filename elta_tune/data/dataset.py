"""A data set as trainings see it: splits with labels and cached images.

`prepare` builds what is missing and checks everything, once per study; `open_dataset` is then quick in every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.batches import SplitImages
from elta_tune.data.cache.images import CachedImages, Progress, no_progress
from elta_tune.data.cache.index import Shelf
from elta_tune.data.cache.snapshots import Snapshot, read_snapshot, write_snapshot
from elta_tune.data.check import examine, other_ratings
from elta_tune.data.demo import with_demo
from elta_tune.data.images import (
    Found,
    decode_files,
    edges_of,
    find_files,
    fingerprint,
    images_folder,
    left_out,
    look_up_files,
    too_few,
)
from elta_tune.data.overlap import listing
from elta_tune.data.readers import Ratings
from elta_tune.data.splits import SplitName, passed_over, read_splits
from elta_tune.errors import DataError
from elta_tune.method.metrics import tail_cuts


@dataclass(frozen=True)
class Split:
    """One split, without the images that are missing or unreadable (`left_out`: id and reason).

    `origin` says which rows of `file` these are; `ids` (N,); `distributions` (N, K) and `scores` (N,) on the data set's
    own scale, None for a pool; `images` by edge in pixels.
    """

    name: str
    file: Path
    origin: str
    ids: NDArray[np.object_]
    distributions: NDArray[np.float32] | None
    scores: NDArray[np.float64] | None
    images: Mapping[int, SplitImages]
    left_out: tuple[tuple[str, str], ...]

    @property
    def true_scores(self) -> NDArray[np.float64]:
        """`scores` of a split that has labels."""
        assert self.scores is not None, f"{self.name} has no labels"
        return self.scores

    @property
    def fingerprint(self) -> str:
        """A hash of its ids and labels."""
        return fingerprint(self.ids, self.scores)


@dataclass(frozen=True)
class Dataset:
    """The splits that were asked for.

    `bins` (K,) are the ratings of a distribution's columns; `is_spread` where distributions were made from scores.
    """

    train: Split
    val: Split
    test: Split | None
    pool: Split | None
    bins: NDArray[np.float64] | None
    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float]
    is_spread: bool = False
    warnings: tuple[str, ...] = ()


def prepare(config: DataConfig, cache: Path, progress: Progress = no_progress) -> Dataset:
    """Reads all splits, decodes their images and refuses what would spoil a study.

    Raises:
        DataError: a file is missing or wrong, too many images are missing, there is no room for the decoded ones,
            splits overlap, or another run goes on with images that have changed since.
    """
    config = with_demo(config, cache, progress)
    examined = examine(config, cache, progress)
    for refusal in examined.refusals:
        raise refusal
    snapshots = {name: _take(item, examined.cached[name], config, cache) for name, item in examined.found.items()}
    twice = [item for item in examined.shared if item.first is not item.second]
    warnings = [*passed_over(config), *([listing(twice)] if twice else [])]
    return replace(_dataset(examined.ratings, snapshots), warnings=tuple(warnings))


def open_dataset(config: DataConfig, cache: Path, splits: Sequence[str] = ("train", "val", "pool")) -> Dataset:
    """The named splits of a data set as it was when it was prepared; what was not is looked for and decoded now.

    Raises:
        DataError: a file is missing or wrong, or too many images are missing.
    """
    config = with_demo(config, cache, no_progress)
    ratings = read_splits(config, splits)
    snapshots = {name: _snapshot(config, cache, name, item) for name, item in ratings.items()}
    return _dataset(ratings, snapshots)


def open_split(
    config: DataConfig, name: SplitName, cache: Path, progress: Progress = no_progress
) -> tuple[Split, Ratings]:
    """One split alone, decoded if it is not, and what its rating file says of scale and threshold.

    Raises:
        DataError: there is no such split, a file is missing or wrong, or too many images are missing.
    """
    config = with_demo(config, cache, progress)
    ratings = read_splits(config, [name])
    if name not in ratings:
        raise DataError(f"there is no {name} split; name its file in data.{name}")
    return _split(name, ratings[name], _snapshot(config, cache, name, ratings[name], progress)), ratings[name]


def _snapshot(
    config: DataConfig, cache: Path, name: SplitName, ratings: Ratings, progress: Progress = no_progress
) -> Snapshot:
    """What is known of a split's images, or is found out now."""
    if known := read_snapshot(Shelf(cache), images_folder(config, ratings), ratings.ids, edges_of(name, config)):
        if refusal := too_few(ratings, known.left_out, config):  # it may be of a study that allows more
            raise refusal
        return known
    found = find_files(config, name, ratings)
    if refusal := too_few(ratings, found.missing, config):
        raise refusal
    cached = decode_files(look_up_files({name: found}, config, cache), cache, progress)[name]
    if refusal := too_few(ratings, left_out(found, cached), config):
        raise refusal
    return _take(found, cached, config, cache)


def _take(found: Found, cached: CachedImages, config: DataConfig, cache: Path) -> Snapshot:
    usable = cached.decoded
    images = {edge: images.subset(usable).compact() for edge, images in cached.images.items()}
    snapshot = Snapshot(found.rows[usable], images, left_out(found, cached))
    folder = images_folder(config, found.ratings)
    write_snapshot(Shelf(cache), folder, found.ratings.ids, cached.digests[usable], snapshot)
    return snapshot


def _split(name: SplitName, ratings: Ratings, snapshot: Snapshot) -> Split:
    rows = snapshot.rows
    return Split(
        name,
        ratings.file,
        ratings.origin,
        ratings.ids[rows],
        None if ratings.distributions is None else ratings.distributions[rows],
        None if ratings.scores is None else ratings.scores[rows],
        snapshot.images,
        snapshot.left_out,
    )


def _dataset(ratings: Mapping[SplitName, Ratings], snapshots: Mapping[SplitName, Snapshot]) -> Dataset:
    splits = {name: _split(name, ratings[name], snapshot) for name, snapshot in snapshots.items()}
    train = ratings["train"]
    for name in ("val", "test"):
        if name in ratings and (refusal := other_ratings(train, ratings[name])):
            raise refusal
    assert train.scale is not None
    assert train.threshold is not None
    return Dataset(
        splits["train"],
        splits["val"],
        splits.get("test"),
        splits.get("pool"),
        train.bins,
        train.scale,
        train.threshold,
        tail_cuts(splits["train"].true_scores),
        train.is_spread,
    )
