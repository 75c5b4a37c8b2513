"""What a study would train on, and every reason to refuse it."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.dataset import Split
from elta_tune.data.demo import with_demo
from elta_tune.data.images import LocatedImages, decode_missing, left_out, locate_images, look_up_images, too_few
from elta_tune.data.overlap import Member, Shared, find_shared, leak
from elta_tune.data.readers import ImageList, Ratings
from elta_tune.data.resolve import ResolvedData
from elta_tune.data.splits import SPLITS, LabelledName, SplitName, SplitRatings, ignored_split_files, read_splits
from elta_tune.errors import ConfigError, DataError, EltaTuneError, Settings, plural, typed
from elta_tune.method import metrics
from elta_tune.method.scores import RatingScale

Listed = TypeVar("Listed", bound=ImageList)
Refusal = TypeVar("Refusal", bound=EltaTuneError)
FEW = 50
"""Validation images below which a note is written: with fewer, the metrics of two trials differ by chance."""


@dataclass(frozen=True)
class Examined:
    """The splits of a data set, their images and the duplicates among them; the reasons to refuse a study.

    Nothing is `located` where only labels are checked, and nothing `cached` where a study is refused without a look at
    the images. `notes` are what the user of a study should know that starts nevertheless.
    """

    data: ResolvedData
    located: Mapping[SplitName, LocatedImages] = field(default_factory=dict)
    cached: Mapping[SplitName, CachedImages] = field(default_factory=dict)
    shared: Sequence[Shared] = ()
    refusals: Sequence[EltaTuneError] = ()
    notes: Sequence[str] = ()

    def usable(self, name: SplitName, listed: Listed) -> Listed:
        """Those images of a split that can be used, or all where no image was looked at."""
        if name not in self.cached:
            return listed
        usable = np.zeros(len(listed.ids), bool)
        usable[self.located[name].rows[self.cached[name].decoded]] = True
        return listed.take(usable, listed.origin)


def examine(
    config: DataConfig,
    cache: ImageCache,
    progress: Progress = no_progress,
    *,
    recipes: Sequence[TrialConfig] = (),
    labels_only: bool = False,
    limit: int | None = None,
    refusals: Sequence[EltaTuneError] = (),
) -> Examined:
    """Reads all splits, decodes their images and finds all that would spoil a study, the cheap things first.

    After a problem with an obvious fix, the check continues as if that were set, so that it also finds the next one.

    Args:
        recipes: trainings that these data have to allow.
        labels_only: no image is looked at.
        limit: bytes that the decoded images may take; free disk space limits them, too.
        refusals: what is known already; images are decoded only where nothing is refused.

    Raises:
        DataError: there is no room for the decoded images.
    """
    data, problems = _read(with_demo(config, cache, progress))
    ratings = data.ratings
    if not {"train", "val"} <= ratings.labelled.keys():
        return Examined(data, refusals=[*refusals, *problems])
    members = [Member(name, item.file, item.ids) for name, item in ratings.all.items()]
    others = (other_ratings(ratings.labelled["train"], other) for other in ratings.labelled.values())
    shared = find_shared(members, cache, 0)
    problems += [*_only_errors(*others, leak(shared)), *_unfit(recipes, Examined(data))]
    labels = Examined(data, shared=shared, refusals=[*refusals, *problems], notes=_notes(data))
    return labels if labels_only else _with_images(labels, cache, progress, recipes, limit)


def _with_images(
    labels: Examined,
    cache: ImageCache,
    progress: Progress,
    recipes: Sequence[TrialConfig],
    limit: int | None,
) -> Examined:
    """A check of labels, with that of the images."""
    data, located, problems = _locate(labels.data)
    config, refusals = data.config, [*labels.refusals, *problems]
    too_few_files = [error for item in located.values() if (error := too_few(item.listed, item.missing, config))]
    too_few_files.sort(key=lambda error: str(error.settings))  # the largest share is set last
    refusals += too_few_files
    if refusals:
        return replace(labels, data=data, located=located, refusals=refusals)
    cached = decode_missing(look_up_images(located, config, cache), cache, progress, limit)
    members = [
        Member(name, item.listed.file, item.listed.ids[item.rows], cached[name]) for name, item in located.items()
    ]
    shared = find_shared(members, cache, config.max_missing)
    examined = replace(labels, data=data, located=located, cached=cached, shared=shared)
    too_few_images = (too_few(item.listed, left_out(item, cached[name]), config) for name, item in located.items())
    refusals = [*_only_errors(*too_few_images, leak(shared)), *_unfit(recipes, examined)]
    return replace(examined, refusals=refusals)


def _read(config: DataConfig) -> tuple[ResolvedData, list[EltaTuneError]]:
    """The ratings of all splits, and why some can't be read. The first setting that a refusal names is assumed, and all
    is read again: so a mere consequence of it is not reported as another problem.
    """
    assumed: dict[str, EltaTuneError] = {}
    while True:
        ratings, errors, wrong_rows = _read_each(config)
        new = next((error for error in errors if isinstance(error, DataError) and error.settings), None)
        try:
            if new is None or new.message in assumed:
                return ResolvedData(config, ratings), [*assumed.values(), *errors, *wrong_rows]
            config = TrialConfig(data=config).replace(new.settings).data
        except ConfigError:  # one setting contradicts another one
            return ResolvedData(config, ratings), [*assumed.values(), *errors, *wrong_rows]
        assumed[new.message] = new


def _read_each(config: DataConfig) -> tuple[SplitRatings, list[EltaTuneError], list[DataError]]:
    """The ratings of those splits that can be read, why others can't, and the rows that are left out as wrong."""
    rows: list[DataError] = []
    with suppress(DataError, ConfigError):
        return read_splits(config, SPLITS, rows), [], rows
    labelled, pool, errors, rows = dict[LabelledName, Ratings](), None, list[EltaTuneError](), []
    for name in SPLITS:
        try:
            part = read_splits(config, [name], rows)
            labelled |= part.labelled
            pool = part.pool
        except (DataError, ConfigError) as error:
            errors.append(error)
    return SplitRatings(labelled, pool), _once(errors), _once(rows)


def _once(errors: Iterable[Refusal]) -> list[Refusal]:
    """Of errors with the same message the first one."""
    found: dict[str, Refusal] = {}
    for error in errors:
        found.setdefault(error.message, error)
    return list(found.values())


def _locate(data: ResolvedData) -> tuple[ResolvedData, dict[SplitName, LocatedImages], list[EltaTuneError]]:
    """The images of all splits; where none is in their folder, one nearby that has them is assumed."""
    config, lists, train = data.config, data.ratings.all, data.ratings.labelled["train"]
    folder = config.path("images")
    is_folder = folder is not None and folder.is_dir()
    problems: list[EltaTuneError] = []
    first = {name: _some(item) for name, item in lists.items()}
    if not (is_folder and any(item.files for item in locate_images(config, first).values())):
        nearby = next(_folders_with(config, train), None)
        where = f"{folder}: none of the first images is in this folder" if is_folder else f"{folder}: no such folder"
        if nearby is not None:
            settings: Settings = {"data.images": nearby}
            hint = f"name the folder that has them: {typed(settings)}"
            problems = [DataError(f"data.images: {where}", hint, settings)]
            config = TrialConfig(data=config).replace(settings).data
        elif not is_folder:
            hint = "name the folder of the images: `data.images=FOLDER`"
            return data, {}, [DataError(f"data.images: {where}" if folder else "data.images: not set", hint)]
    return replace(data, config=config), locate_images(config, lists), problems


def _some(listed: Listed) -> Listed:
    return listed.take(np.arange(len(listed.ids)) < 20, listed.origin)


def _folders_with(config: DataConfig, train: Ratings) -> Iterator[str]:
    """Folders near the rating file that have most of its first images, as `data.images` names them."""
    places = dict.fromkeys([config.root or train.file.parent, train.file.parent])
    below = (folder for place in places for folder in sorted(place.iterdir()) if folder.is_dir())
    for folder in (*places, *itertools.islice(below, 100)):
        located = locate_images(config.model_copy(update={"images": folder}), {"train": _some(train)})["train"]
        if len(located.files) > len(located.missing):
            yield os.path.relpath(folder, config.root or Path.cwd())


def _notes(data: ResolvedData) -> list[str]:
    ratings = data.ratings
    notes = dict.fromkeys(note for item in ratings.all.values() for note in item.notes)
    skipped = {item.file: item.unlabelled for item in ratings.labelled.values() if item.unlabelled}
    for file, names in skipped.items():
        shown = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
        notes[f"{file}: {plural(len(names), 'row')} without a rating skipped: {shown}"] = None
    count = len(ratings.labelled["val"].ids)
    if count < FEW:
        notes[f"only {plural(count, 'validation image')}: metrics of fewer than {FEW} differ by chance"] = None
    return [*ignored_split_files(data.config), *notes]


def _unfit(recipes: Iterable[TrialConfig], examined: Examined) -> list[EltaTuneError]:
    """Why recipes can't be trained on the images that can be used, each reason once."""
    train, val = (examined.usable(name, examined.data.ratings.labelled[name]) for name in ("train", "val"))
    has_pool, has_bins = examined.data.ratings.pool is not None, train.bins is not None
    if not (len(train.ids) and len(val.ids)):
        return []
    cuts = metrics.tail_cuts(train.scores)
    by = RatingScale(val.scale, val.threshold, cuts, val.is_spread, val.higher_is_better)
    reasons = [
        reason
        for recipe in recipes
        for reason in (
            *reasons_to_refuse(recipe, train, has_pool=has_pool, has_bins=has_bins, scale=train.scale),
            unmeasurable(recipe, val, by),
        )
    ]
    return _once(_only_errors(*reasons))


def reasons_to_refuse(
    config: TrialConfig, train: Ratings | Split, *, scale: tuple[float, float], has_pool: bool, has_bins: bool
) -> Iterator[DataError]:
    """Why a recipe can't be trained on these images, in the order in which it is found out.

    Args:
        scale: of its scores.
        has_pool: whether there are unlabelled images.
        has_bins: whether there are distributions of ratings.
    """
    if config.model.head == "emd" and not has_bins:
        width = f"{(scale[1] - scale[0]) / 8:.2g}"
        yield DataError(
            "model.head: emd needs ratings with a distribution; these have scores only",
            f"predict scores: `model.head=mse`; or spread the scores over bins: `data.spread={width}`",
            {"model.head": "mse"},
        )
    images = len(train.ids)
    if images < config.training.batch_size:
        settings = {"training.batch_size": max(2, 1 << (images // 2).bit_length() - 1)}
        yield DataError(
            f"training.batch_size: {config.training.batch_size} is more than the {plural(images, 'image')} of "
            f"{train.file}, and incomplete batches are dropped",
            f"take smaller batches, such as {typed(settings)}",
            settings,
        )
    if config.self_training.rounds and not has_pool:
        hint = "name a list or a folder of unlabelled images: `data.pool=FILE`; or: `self_training.rounds=0`"
        yield DataError("self_training.rounds: there is no pool of unlabelled images", hint)


def unmeasurable(config: TrialConfig, val: Ratings | Split, by: RatingScale) -> EltaTuneError | None:
    """Why not even a perfect prediction of the validation images has the metric that chooses the best epoch."""
    metric = config.evaluation.metric
    if metric in ("srcc", "plcc") and metrics.varies(val.scores):
        return None  # without SciPy, whose import would be a third of a check of labels alone
    distributions = None if by.is_spread or config.model.head != "emd" else val.distributions
    ideal = metrics.evaluate(
        val.scores,
        val.scores,
        scale=by.scale,
        tail_cuts=by.tail_cuts,
        predicted_distributions=distributions,
        true_distributions=distributions,
        higher_is_better=by.higher_is_better,
    )
    if metric not in ideal:
        return ConfigError(
            f"evaluation.metric: {metric} is not measured on {val.file}", f"choose from {', '.join(ideal)}"
        )
    if math.isnan(ideal[metric]):
        count, is_constant = len(val.ids), np.ptp(val.scores) == 0
        why = f"all scores are {val.scores[0]:g}" if is_constant else "too few of them count for it"
        return DataError(f"{val.file}: {metric} is not defined on its {plural(count, 'image')}: {why}")
    return None


def _only_errors(*found: EltaTuneError | None) -> list[EltaTuneError]:
    return [error for error in found if error is not None]


def other_ratings(train: Ratings, other: Ratings) -> DataError | None:
    """Why predictions and truth are not on one scale or, where both have distributions, in the same bins."""
    if train.scale != other.scale:
        return DataError(
            f"{other.file}: its scale is {_span(other.scale)}, but that of {train.file} is {_span(train.scale)}",
            "if both are on one scale: `data.scale=[LOWEST,HIGHEST]`",
        )
    if train.bins is not None and other.bins is not None and not np.array_equal(train.bins, other.bins):
        own, others = (f"{len(bins)} bins of ratings, {_span(bins)}" for bins in (train.bins, other.bins))
        return DataError(f"{other.file}: has {others}, but {train.file} has {own}")
    return None


def _span(values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"{values[0]:g}…{values[-1]:g}"
