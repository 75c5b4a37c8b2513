"""From a recipe's `data` section to a data set.

`prepare` builds what is missing and checks everything, once per study; `open_dataset` is then quick in every trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache.images import CachedImages, Progress, no_progress
from elta_tune.data.cache.index import Shelf
from elta_tune.data.cache.snapshots import Snapshot, read_snapshot, write_snapshot
from elta_tune.data.check import examine, other_ratings
from elta_tune.data.dataset import Dataset, ImageSet, Split
from elta_tune.data.demo import with_demo
from elta_tune.data.images import (
    Found,
    decode_files,
    edges_of,
    find_files,
    images_folder,
    left_out,
    look_up_files,
    too_few,
)
from elta_tune.data.overlap import listing
from elta_tune.data.readers import ImageList, Ratings
from elta_tune.data.splits import LabelledName, SplitName, SplitRatings, read_splits
from elta_tune.errors import DataError, EltaTuneError, combined
from elta_tune.method.metrics import tail_cuts


def prepare(
    config: DataConfig,
    cache: Path,
    progress: Progress = no_progress,
    *,
    recipes: Sequence[TrialConfig] = (),
    refusals: Sequence[EltaTuneError] = (),
) -> Dataset:
    """Reads all splits, decodes their images and refuses what would spoil a study, all of it in one error.

    Args:
        recipes: trainings that these data have to allow.
        refusals: what is known already to be wrong.

    Raises:
        EltaTuneError: a file is missing or wrong, too many images are missing, there is no room for the decoded ones,
            splits overlap, a recipe can't be trained, or another run goes on with images that have changed since.
    """
    config = with_demo(config, cache, progress)
    examined = examine(config, cache, progress, recipes=recipes, refusals=refusals)
    if examined.refusals:
        raise combined(examined.refusals)
    snapshots = {name: _take(item, examined.cached[name], config, cache) for name, item in examined.found.items()}
    duplicates = [item for item in examined.shared if item.first is not item.second]
    warnings = [*examined.notes, *([listing(duplicates)] if duplicates else [])]
    return replace(_dataset(examined.ratings, snapshots), warnings=tuple(warnings))


def open_dataset(config: DataConfig, cache: Path, splits: Sequence[str] = ("train", "val", "pool")) -> Dataset:
    """The named splits of a data set as it was when it was prepared; what was not is looked for and decoded now.

    Raises:
        DataError: a file is missing or wrong, or too many images are missing.
    """
    config = with_demo(config, cache, no_progress)
    ratings = read_splits(config, splits)
    snapshots = {name: _snapshot(config, cache, name, item) for name, item in ratings.all.items()}
    return _dataset(ratings, snapshots)


def open_split(
    config: DataConfig, name: LabelledName, cache: Path, progress: Progress = no_progress
) -> tuple[Split, Ratings]:
    """One split alone, decoded if it is not, and its rating file, which contains scale and threshold.

    Raises:
        DataError: there is no such split, a file is missing or wrong, or too many images are missing.
    """
    config = with_demo(config, cache, progress)
    ratings = read_splits(config, [name]).labelled.get(name)
    if ratings is None:
        raise DataError(f"there is no {name} split; name its file in data.{name}")
    return _split(name, ratings, _snapshot(config, cache, name, ratings, progress)), ratings


def _snapshot(
    config: DataConfig, cache: Path, name: SplitName, ratings: ImageList, progress: Progress = no_progress
) -> Snapshot:
    """The snapshot of a split, which is taken now if there is none."""
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


def _image_set(name: SplitName, listed: ImageList, snapshot: Snapshot) -> ImageSet:
    ids = listed.ids[snapshot.rows]
    return ImageSet(name, listed.file, listed.origin, ids, snapshot.images, snapshot.left_out)


def _split(name: LabelledName, ratings: Ratings, snapshot: Snapshot) -> Split:
    distributions = None if ratings.distributions is None else ratings.distributions[snapshot.rows]
    images = _image_set(name, ratings, snapshot)
    return Split(
        **vars(images),
        scores=ratings.scores[snapshot.rows],
        distributions=distributions,
        unlabelled=len(ratings.unlabelled),
    )


def _dataset(ratings: SplitRatings, snapshots: dict[SplitName, Snapshot]) -> Dataset:
    labelled, pool = ratings.labelled, ratings.pool
    train = labelled["train"]
    for other in labelled.values():
        if refusal := other_ratings(train, other):
            raise refusal
    splits = {name: _split(name, item, snapshots[name]) for name, item in labelled.items()}
    return Dataset(
        splits["train"],
        splits["val"],
        splits.get("test"),
        None if pool is None else _image_set("pool", pool, snapshots["pool"]),
        train.bins,
        train.scale,
        train.threshold,
        tail_cuts(splits["train"].scores),
        train.is_spread,
        train.higher_is_better,
    )
