"""A data set as trainings see it: splits with labels and cached images.

`prepare` builds what is missing and checks everything, once per study; `open_dataset` is then quick in every trial.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.batches import Images
from elta_tune.data.cache import DECODED, CacheFolder, Progress, open_cache
from elta_tune.data.demo import write_demo
from elta_tune.data.overlap import Member, find_overlaps
from elta_tune.data.readers import Ratings
from elta_tune.data.splits import SPLITS, SplitName, read_splits
from elta_tune.errors import DataError
from elta_tune.method.metrics import tail_cuts

DEMO_VERSION = 1
"""Another number makes the demo's images anew: raise it when `demo.py` draws others."""
SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Tried in this order after an image's id."""


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
    images: Mapping[int, Images]
    left_out: tuple[tuple[str, str], ...]

    @property
    def true_scores(self) -> NDArray[np.float64]:
        """`scores` of a split that has labels."""
        assert self.scores is not None, f"{self.name} has no labels"
        return self.scores

    @property
    def fingerprint(self) -> str:
        """A hash of its ids and labels."""
        digest = hashlib.blake2b("\0".join(self.ids).encode(), digest_size=8)
        digest.update(b"" if self.scores is None else self.scores.round(6).tobytes())
        return digest.hexdigest()


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


@dataclass(frozen=True)
class Found:
    """A rating file whose images were looked for."""

    name: SplitName
    ratings: Ratings
    files: list[Path]
    rows: NDArray[np.int64]
    missing: tuple[tuple[str, str], ...]


def no_progress(done: int, total: int, what: str) -> None:
    """Shows nothing."""


def prepare(config: DataConfig, cache: Path, progress: Progress = no_progress) -> Dataset:
    """Reads all splits, builds their caches and refuses what would spoil a study.

    Raises:
        DataError: a file is missing or wrong, too many images are missing, or splits overlap.
    """
    config = _with_demo(config, cache, progress)
    found = {name: _find(config, name, ratings) for name, ratings in read_splits(config).items()}
    folders = {name: _open(item, config, cache, progress) for name, item in found.items()}
    members = [
        Member(name, item.ratings.file, item.ratings.ids[item.rows], folders[name]) for name, item in found.items()
    ]
    warnings = find_overlaps(members)
    return replace(_dataset(config, found, folders), warnings=tuple(warnings))


def open_dataset(config: DataConfig, cache: Path, splits: Sequence[str] = ("train", "val", "pool")) -> Dataset:
    """The named splits of a data set that was prepared; what is not cached is cached now.

    Raises:
        DataError: a file is missing or wrong, or too many images are missing.
    """
    config = _with_demo(config, cache, no_progress)
    found = {name: _find(config, name, ratings) for name, ratings in read_splits(config, splits).items()}
    folders = {name: _open(item, config, cache, no_progress) for name, item in found.items()}
    return _dataset(config, found, folders)


def _with_demo(config: DataConfig, cache: Path, progress: Progress) -> DataConfig:
    """The demo is written once, as files like everyone's; from there on it is a root like any other."""
    if config.demo is None:
        return config
    facts = config.demo.model_dump()
    key = hashlib.blake2b(f"{DEMO_VERSION} {facts}".encode(), digest_size=6).hexdigest()
    folder = cache.absolute() / f"demo-{key}"
    if not folder.exists():
        total = sum(facts[name] for name in SPLITS)
        progress(0, total, "drawing the demo's photographs")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=cache) as aside:
            write_demo(Path(aside) / "demo", **facts)
            try:
                (Path(aside) / "demo").rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster, with the same images
                    raise
        progress(total, total, "drawing the demo's photographs")
    return config.model_copy(update={"demo": None, "root": folder})


def _find(config: DataConfig, name: SplitName, ratings: Ratings) -> Found:
    """Looks for the images of a split."""
    file = ratings.file
    images = file if file.is_dir() else config.path("images")
    if images is None or not images.is_dir():
        raise DataError(
            f"data.images: {images or 'not set'}: there is no such folder", "say where it is: --set data.images=FOLDER"
        )
    paths = [_image_file(images, name_) for name_ in ratings.ids]
    there = np.array([path is not None for path in paths], dtype=bool)
    missing = tuple((str(name_), _why_missing(images, name_)) for name_ in ratings.ids[~there])
    return Found(name, ratings, [path for path in paths if path is not None], np.flatnonzero(there), missing)


def _image_file(folder: Path, name: str) -> Path | None:
    """An image by its id. Links are followed, wherever they lead: many keep their data sets that way."""
    if _leads_out(folder, name):
        return None
    base = os.path.join(folder, name)
    return next((Path(base + suffix) for suffix in SUFFIXES if os.path.isfile(base + suffix)), None)


def _why_missing(folder: Path, name: str) -> str:
    return f"this id leads out of {folder}" if _leads_out(folder, name) else "there is no such file"


def _leads_out(folder: Path, name: str) -> bool:
    """Whether an id names something outside the folder: a rating file from elsewhere must not."""
    if ".." not in name and not os.path.isabs(name):
        return False
    return not os.path.normpath(os.path.join(folder, name)).startswith(os.path.join(folder, ""))


def _open(found: Found, config: DataConfig, cache: Path, progress: Progress) -> CacheFolder:
    _refuse_missing(found, list(found.missing), config)
    sizes = [config.crop] if found.name in ("val", "test") else [config.resize, config.crop]
    folder = open_cache(cache.absolute(), found.files, sizes, progress, f"decoding {found.name} images")
    if (folder.status() != DECODED).any():
        _refuse_missing(found, [*found.missing, *_unreadable(found, folder)], config)
    return folder


def _unreadable(found: Found, folder: CacheFolder) -> list[tuple[str, str]]:
    names = found.ratings.ids[found.rows]
    return [(str(names[index]), reason) for index, reason in sorted(folder.reasons().items())]


def _refuse_missing(found: Found, missing: list[tuple[str, str]], config: DataConfig) -> None:
    total = len(found.ratings.ids)
    if len(missing) <= config.max_missing * total and len(missing) < total:
        return
    shown = "; ".join(f"{name!r}: {reason}" for name, reason in missing[:3])
    more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise DataError(
        f"{found.ratings.file}: {len(missing)} of {total} images are missing or unreadable, more than data.max_missing "
        f"({config.max_missing:.2%}) allows: {shown}{more}",
        "say where the images are: --set data.images=FOLDER; or allow more: --set data.max_missing=0.05",
    )


def _split(found: Found, folder: CacheFolder) -> Split:
    usable = np.flatnonzero(folder.status() == DECODED)
    rows = found.rows[usable]
    ratings = found.ratings
    images = {int(path.stem): Images(folder.images(int(path.stem)), usable) for path in folder.path.glob("[0-9]*.npy")}
    return Split(
        found.name,
        ratings.file,
        ratings.origin,
        ratings.ids[rows],
        None if ratings.distributions is None else ratings.distributions[rows],
        None if ratings.scores is None else ratings.scores[rows],
        images,
        (*found.missing, *_unreadable(found, folder)),
    )


def _dataset(config: DataConfig, found: Mapping[SplitName, Found], folders: Mapping[SplitName, CacheFolder]) -> Dataset:
    splits = {name: _split(item, folders[name]) for name, item in found.items()}
    train = found["train"].ratings
    for other in (found[name].ratings for name in ("val", "test") if name in found):
        _refuse_other_ratings(train, other)
    scores = splits["train"].true_scores
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
        tail_cuts(scores),
        train.is_spread,
    )


def _refuse_other_ratings(train: Ratings, other: Ratings) -> None:
    """Predictions and truth have to be on one scale and, where both have distributions, in the same bins."""
    if train.scale != other.scale:
        raise DataError(
            f"{other.file}: its scale is {_span(other.scale)}, but that of {train.file} {_span(train.scale)}",
            "if both are on the same, say it: --set data.scale=[lowest,highest]",
        )
    if train.bins is not None and other.bins is not None and not np.array_equal(train.bins, other.bins):
        told = [f"{len(bins)} bins of ratings, {_span(bins)}" for bins in (other.bins, train.bins)]
        raise DataError(f"{other.file}: has {told[0]}, but {train.file} has {told[1]}")


def _span(values: Sequence[float] | NDArray[np.float64] | None) -> str:
    return "unknown" if values is None else f"{values[0]:g}…{values[-1]:g}"
