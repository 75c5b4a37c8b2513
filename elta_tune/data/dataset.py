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
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.batches import Images
from elta_tune.data.cache import DECODED, CacheFolder, Progress, open_cache
from elta_tune.data.demo import write_demo
from elta_tune.data.overlap import Member, find_overlaps
from elta_tune.data.readers import Ratings, read_ratings, read_unlabelled
from elta_tune.errors import DataError
from elta_tune.method.metrics import tail_cuts

SplitName = Literal["train", "val", "test", "pool"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test", "pool")
DEMO_VERSION = 1
"""Another number makes the demo's images anew: raise it when `demo.py` draws others."""
SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Tried in this order after an image's id."""


@dataclass(frozen=True)
class Split:
    """One split, without the images that are missing or unreadable (`left_out`: id and reason).

    `ids` (N,); `distributions` (N, K) and `scores` (N,) on the data set's own scale, None for a pool; `images` by
    edge in pixels.
    """

    name: str
    file: Path
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
    """The splits that were asked for. `bins` (K,) are the ratings of a distribution's columns."""

    train: Split
    val: Split
    test: Split | None
    pool: Split | None
    bins: NDArray[np.float64] | None
    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float]
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
    found = {name: item for name in SPLITS if (item := _find(config, name)) is not None}
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
    wanted = [name for name in SPLITS if name in splits]
    found = {name: item for name in wanted if (item := _find(config, name)) is not None}
    folders = {name: _open(item, config, cache, no_progress) for name, item in found.items()}
    return _dataset(config, found, folders)


def open_split(
    config: DataConfig, name: SplitName, cache: Path, progress: Progress = no_progress
) -> tuple[Split, Ratings]:
    """One split alone, cached if it is not, and what its rating file says of scale and threshold.

    Raises:
        DataError: there is no such split, a file is missing or wrong, or too many images are missing.
    """
    config = _with_demo(config, cache, progress)
    found = _find(config, name)
    if found is None:
        raise DataError(f"there is no {name} split; name its file in data.{name}")
    return _split(found, _open(found, config, cache, progress)), found.ratings


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


def _find(config: DataConfig, name: SplitName) -> Found | None:
    """A split's rating file and images, or None for a test or a pool that is not there."""
    file = config.path(name)
    if file is None:
        if name in ("test", "pool"):
            return None
        raise DataError(
            f"data.{name}: no rating file, and no data.root to look in",
            "say where your images and ratings are: --set data.root=FOLDER",
        )
    ratings = read_unlabelled(file, config) if name == "pool" else read_ratings(file, config)
    images = file if file.is_dir() else config.path("images")
    if images is None or not images.is_dir():
        raise DataError(
            f"data.images: {images or 'not set'}: there is no such folder", "say where it is: --set data.images=FOLDER"
        )
    paths = [image_file(images, name_) for name_ in ratings.ids]
    there = np.array([path is not None for path in paths], dtype=bool)
    missing = tuple((str(name_), "there is no such file") for name_ in ratings.ids[~there])
    return Found(name, ratings, [path for path in paths if path is not None], np.flatnonzero(there), missing)


def image_file(folder: Path, name: str) -> Path | None:
    """Where the image of an id is: as given, or with a usual suffix."""
    base = os.path.join(folder, name)
    return next((Path(base + suffix) for suffix in SUFFIXES if os.path.isfile(base + suffix)), None)


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
        ratings.ids[rows],
        None if ratings.distributions is None else ratings.distributions[rows],
        None if ratings.scores is None else ratings.scores[rows],
        images,
        (*found.missing, *_unreadable(found, folder)),
    )


def _dataset(config: DataConfig, found: Mapping[SplitName, Found], folders: Mapping[SplitName, CacheFolder]) -> Dataset:
    splits = {name: _split(item, folders[name]) for name, item in found.items()}
    train, val = found["train"].ratings, found["val"].ratings
    for other in (item.ratings for name, item in found.items() if name in ("val", "test")):
        if train.bins is not None and other.bins is not None and len(train.bins) != len(other.bins):
            raise DataError(
                f"{other.file}: has {len(other.bins)} bins of ratings, but {train.file} has {len(train.bins)}"
            )
    scores = splits["train"].scores
    if scores is None or train.scale is None or train.threshold is None or val.scores is None:
        raise DataError(f"{train.file}, {val.file}: need ratings")
    return Dataset(
        splits["train"],
        splits["val"],
        splits.get("test"),
        splits.get("pool"),
        train.bins,
        train.scale,
        train.threshold,
        tail_cuts(scores),
    )
