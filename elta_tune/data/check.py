"""What a study would be made of, and what speaks against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache.images import CachedImages, Progress, no_progress
from elta_tune.data.cache.index import Shelf
from elta_tune.data.dataset import Split
from elta_tune.data.demo import with_demo
from elta_tune.data.images import Found, decode_files, find_files, left_out, look_up_files, too_few
from elta_tune.data.overlap import Member, Shared, find_shared, leak
from elta_tune.data.readers import ImageList, Ratings
from elta_tune.data.splits import SPLITS, SplitName, SplitRatings, read_splits
from elta_tune.errors import ConfigError, DataError, EltaTuneError
from elta_tune.method import metrics

Listed = TypeVar("Listed", bound=ImageList)


@dataclass(frozen=True)
class Examined:
    """The splits of a data set, their images and those of them that are there twice; why a study would be refused.

    Nothing is `found` where only labels were asked for, and nothing `cached` where a study is refused without a look at
    the images.
    """

    ratings: SplitRatings
    found: Mapping[SplitName, Found]
    cached: Mapping[SplitName, CachedImages]
    shared: Sequence[Shared]
    refusals: Sequence[EltaTuneError]

    def usable(self, name: SplitName, listed: Listed) -> Listed:
        """Those images of a split that can be used, or all where no image was looked at."""
        if name not in self.cached:
            return listed
        usable = np.zeros(len(listed.ids), bool)
        usable[self.found[name].rows[self.cached[name].decoded]] = True
        return listed.take(usable, listed.origin)


def examine_recipe(
    config: TrialConfig, cache: Path, progress: Progress, *, labels_only: bool = False, limit: int | None = None
) -> Examined:
    """What `examine` or `examine_labels` finds, and whether the recipe can be trained on it.

    Raises:
        DataError: a file is missing or wrong, or there is no room for the decoded images.
    """
    examined = examine_labels(config.data, cache) if labels_only else examine(config.data, cache, progress, limit)
    train, val = (examined.usable(name, examined.ratings.labelled[name]) for name in ("train", "val"))
    refusals: list[EltaTuneError | None] = [
        unfit(config, train.file, len(train.ids), has_pool=examined.ratings.pool is not None)
    ]
    if len(train.ids) and len(val.ids):
        refusals.append(unmeasurable(config, train, val, scale=val.scale, has_distributions=not val.is_spread))
    return replace(examined, refusals=[*examined.refusals, *_only_errors(*refusals)])


def refused_files(config: DataConfig, cache: Path) -> list[DataError]:
    """Why rating files are refused, each of them for itself."""
    config = with_demo(config, cache, no_progress)
    found: dict[str, DataError] = {}
    for name in SPLITS:
        try:
            read_splits(config, [name])
        except DataError as error:
            found.setdefault(error.message, error)
    return list(found.values())


def examine_labels(config: DataConfig, cache: Path) -> Examined:
    """Reads all splits, and finds what of their labels would spoil a study.

    Raises:
        DataError: a file is missing or wrong.
    """
    config = with_demo(config, cache, no_progress)
    ratings = read_splits(config)
    shared = find_shared([Member(name, item.file, item.ids) for name, item in ratings.all.items()], Shelf(cache), 0)
    labelled = ratings.labelled
    others = (other_ratings(labelled["train"], other) for other in labelled.values())
    return Examined(ratings, {}, {}, shared, _only_errors(*others, leak(shared)))


def examine(config: DataConfig, cache: Path, progress: Progress, limit: int | None = None) -> Examined:
    """Reads all splits, decodes their images and finds what would spoil a study.

    Args:
        limit: bytes that the decoded images may take, beside what is free on the disk.

    Raises:
        DataError: a file is missing or wrong, or there is no room for the decoded images.
    """
    config = with_demo(config, cache, progress)
    labels = examine_labels(config, cache)
    found = {name: find_files(config, name, ratings) for name, ratings in labels.ratings.all.items()}
    too_few_files = (too_few(item.ratings, item.missing, config) for item in found.values())
    if refusals := _only_errors(*labels.refusals, *too_few_files):
        return replace(labels, found=found, refusals=refusals)
    cached = decode_files(look_up_files(found, config, cache), cache, progress, limit)
    members = [
        Member(name, item.ratings.file, item.ratings.ids[item.rows], cached[name]) for name, item in found.items()
    ]
    shared = find_shared(members, Shelf(cache), config.max_missing)
    too_few_images = (too_few(item.ratings, left_out(item, cached[name]), config) for name, item in found.items())
    return Examined(labels.ratings, found, cached, shared, _only_errors(*too_few_images, leak(shared)))


def unfit(config: TrialConfig, train: Path, images: int, *, has_pool: bool) -> DataError | None:
    """Why a recipe can't be trained on so many images of a rating file, or None if it can."""
    if images < config.training.batch_size:
        return DataError(
            f"training.batch_size: {config.training.batch_size} is more than the {images} images of {train}, "
            "and incomplete batches are dropped"
        )
    if config.self_training.rounds and not has_pool:
        return DataError(
            "self_training.rounds: there is no pool of unlabelled images", "name one: `data.pool=FILE`, or a folder"
        )
    return None


def unmeasurable(
    config: TrialConfig,
    train: Ratings | Split,
    val: Ratings | Split,
    *,
    scale: tuple[float, float],
    has_distributions: bool,
) -> EltaTuneError | None:
    """Why not even a perfect prediction of the validation images has the metric that chooses the best epoch.

    Args:
        scale: of the scores.
        has_distributions: whether people gave them.
    """
    metric = config.evaluation.metric
    if metric in ("srcc", "plcc") and metrics.varies(val.scores):
        return None  # without SciPy, whose import would be a third of a check of labels alone
    distributions = val.distributions if has_distributions and config.model.head == "emd" else None
    ideal = metrics.evaluate(
        val.scores,
        val.scores,
        scale=scale,
        tail_cuts=metrics.tail_cuts(train.scores),
        predicted_distributions=distributions,
        true_distributions=distributions,
    )
    if metric not in ideal:
        return ConfigError(f"evaluation.metric: {metric} is not measured on {val.file}; there are {', '.join(ideal)}")
    if np.isnan(ideal[metric]):
        count, is_constant = len(val.ids), np.ptp(val.scores) == 0
        why = f"the score of all is {val.scores[0]:g}" if is_constant else "too few of them count for it"
        return DataError(f"{val.file}: {metric} is not defined on its {count} images: {why}")
    return None


def _only_errors(*found: EltaTuneError | None) -> list[EltaTuneError]:
    return [error for error in found if error is not None]


def other_ratings(train: Ratings, other: Ratings) -> DataError | None:
    """Why predictions and truth are not on one scale or, where both have distributions, in the same bins."""
    if train.scale != other.scale:
        return DataError(
            f"{other.file}: its scale is {_span(other.scale)}, but that of {train.file} {_span(train.scale)}",
            "if both are on the same, say it: `data.scale=[lowest,highest]`",
        )
    if train.bins is not None and other.bins is not None and not np.array_equal(train.bins, other.bins):
        told = [f"{len(bins)} bins of ratings, {_span(bins)}" for bins in (other.bins, train.bins)]
        return DataError(f"{other.file}: has {told[0]}, but {train.file} has {told[1]}")
    return None


def _span(values: Sequence[float] | NDArray[np.float64] | None) -> str:
    return "unknown" if values is None else f"{values[0]:g}…{values[-1]:g}"
