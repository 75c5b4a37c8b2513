"""From a recipe's `data` section to a data set.

`prepare` builds what is missing and checks everything, once per study; `open_dataset` is then quick in every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.cache.snapshots import Snapshot
from elta_tune.data.check import examine, other_ratings
from elta_tune.data.dataset import Dataset, ImageSet, Split
from elta_tune.data.images import (
    LocatedImages,
    decode_missing,
    images_folder,
    left_out,
    locate_images,
    look_up_images,
    snapshot_key,
    too_few,
)
from elta_tune.data.overlap import listing
from elta_tune.data.readers import ImageList, Ratings
from elta_tune.data.resolve import ResolvedData, resolve
from elta_tune.data.splits import LabelledName, SplitName, SplitRatings
from elta_tune.errors import DataError, EltaTuneError, combined
from elta_tune.method.metrics import tail_cuts


def prepare(
    config: DataConfig,
    cache: ImageCache,
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
            splits overlap, a recipe can't be trained, or another run is using images that have changed since.
    """
    examined = examine(config, cache, progress, recipes=recipes, refusals=refusals)
    if examined.refusals:
        raise combined(examined.refusals)
    data, cached = examined.data, examined.cached
    snapshots = {name: _record(data.config, cache, name, item, cached[name]) for name, item in examined.located.items()}
    duplicates = [item for item in examined.shared if item.first is not item.second]
    warnings = [*examined.notes, *([listing(duplicates)] if duplicates else [])]
    return replace(_dataset(data.ratings, snapshots), warnings=tuple(warnings))


def open_dataset(config: DataConfig, cache: ImageCache, splits: Sequence[str] = ("train", "val", "pool")) -> Dataset:
    """The named splits of a data set as it was when it was prepared; what was not is looked for and decoded now.

    Raises:
        DataError: a file is missing or wrong, or too many images are missing.
    """
    data = resolve(config, cache, splits=splits)
    return _dataset(data.ratings, {name: _snapshot(data, cache, name) for name in data.ratings.all})


def open_split(
    config: DataConfig, name: LabelledName, cache: ImageCache, progress: Progress = no_progress
) -> tuple[Split, Ratings]:
    """A single split, decoded if necessary, and its rating file, which contains scale and threshold.

    Raises:
        DataError: the split does not exist, a file is missing or wrong, or too many images are missing.
    """
    data = resolve(config, cache, progress, splits=[name])
    ratings = data.ratings.labelled.get(name)
    if ratings is None:
        raise DataError(f"there is no {name} split; name its file in data.{name}")
    return _split(name, ratings, _snapshot(data, cache, name, progress)), ratings


def _snapshot(data: ResolvedData, cache: ImageCache, name: SplitName, progress: Progress = no_progress) -> Snapshot:
    """The snapshot of a split, which is recorded now if there is none."""
    config, listed = data.config, data.ratings.all[name]
    if recorded := cache.snapshot(snapshot_key(name, config, listed)):
        _refuse_too_few(listed, recorded.left_out, config)  # it may be of a study that allows more
        return recorded
    located = locate_images(config, {name: listed})
    _refuse_too_few(listed, located[name].missing, config)
    cached = decode_missing(look_up_images(located, config, cache), cache, progress)
    _refuse_too_few(listed, left_out(located[name], cached[name]), config)
    return _record(config, cache, name, located[name], cached[name])


def _refuse_too_few(listed: ImageList, missing: Sequence[tuple[str, str]], config: DataConfig) -> None:
    if refusal := too_few(listed, tuple(missing), config):
        raise refusal


def _record(
    config: DataConfig, cache: ImageCache, name: SplitName, located: LocatedImages, cached: CachedImages
) -> Snapshot:
    key, folder = snapshot_key(name, config, located.listed), images_folder(config, located.listed)
    return cache.record(key, cached, located.rows, left_out(located, cached), folder)


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


def _dataset(ratings: SplitRatings, snapshots: Mapping[SplitName, Snapshot]) -> Dataset:
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
