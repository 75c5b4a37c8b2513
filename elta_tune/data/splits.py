"""Which images are for training, validation and test: by files, by a column of a file, or held out here."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig, SplitConfig
from elta_tune.data.readers import ImageList, Ratings, id_bytes, read_ratings, read_unlabelled
from elta_tune.errors import DataError

LabelledName = Literal["train", "val", "test"]
SplitName = Literal["train", "val", "test", "pool"]
LABELLED: tuple[LabelledName, ...] = ("train", "val", "test")
SPLITS: tuple[SplitName, ...] = (*LABELLED, "pool")


@dataclass(frozen=True)
class SplitRatings:
    """The ratings of some splits, and the images of the pool."""

    labelled: Mapping[LabelledName, Ratings]
    pool: ImageList | None

    @property
    def all(self) -> Mapping[SplitName, ImageList]:
        """The images of all splits and of the pool."""
        pool: dict[SplitName, ImageList] = {} if self.pool is None else {"pool": self.pool}
        return {**dict(self.labelled.items()), **pool}


def read_splits(config: DataConfig, names: Collection[str] = SPLITS) -> SplitRatings:
    """The ratings of the named splits; a test or a pool that is nowhere is left out.

    A split is the rows of its own file (`data.val`) or of the one file of all (`data.ratings`); where that has a column
    of splits, those that it says. What `data.split` holds out is taken from the training rows.

    Raises:
        DataError: a file is missing or wrong, or has no rows of a split.
    """
    found: dict[LabelledName, Ratings] = {}
    files: dict[Path, Ratings] = {}  # one file may hold several splits
    parts: NDArray[np.str_] | None = None
    for name in (split for split in LABELLED if split in names):
        source: LabelledName = "train" if name != "train" and _share(config, name) else name
        file = _file(config, source)
        if file is None:
            continue
        if file not in files:
            files[file] = read_ratings(file, config)
        rows = _rows(files[file], source, config)
        if rows is not None and config.split is not None and source == "train":
            parts = hold_out(rows, config.split) if parts is None else parts
            rows = rows.take(parts == name, _part_origin(rows, name, config.split))
        if rows is not None:
            found[name] = rows
    pool = config.path("pool") if "pool" in names else None
    return SplitRatings(found, None if pool is None else read_unlabelled(pool, config))


def passed_over(config: DataConfig) -> list[str]:
    """What is to be said where a split is held out though the root has a file of it."""
    if config.root is None or config.ratings or config.train:
        return []
    files = {name: config.root / f"{name}.csv" for name in LABELLED if _share(config, name)}
    return [
        f"{file} is not read: data.split.{name} holds out {_share(config, name):g} of the training images instead"
        for name, file in files.items()
        if file.exists()
    ]


def hold_out(ratings: Ratings, split: SplitConfig) -> NDArray[np.str_]:
    """Train, val or test for each image, (N,): parts that are alike in their scores from tail to tail.

    The images are sorted by score and cut into as many runs as a part shall have images; one of each run goes there.
    Which one hangs on its id and the seed alone: so the order of the rows does not matter.

    Raises:
        DataError: there are too few images for a part.
    """
    lots = draw_lots(ratings.ids, split.seed)
    parts = np.full(len(ratings.ids), "train")
    rest = np.lexsort((lots, ratings.scores))
    for name in ("val", "test"):
        share: float = getattr(split, name)
        count = round(share * len(parts))
        if share and not 0 < count < len(rest):
            raise DataError(f"{ratings.file}: data.split.{name}: {share:g} of {len(parts)} images leaves a part empty")
        for run in np.array_split(rest, count) if count else ():
            parts[run[lots[run].argmin()]] = name
        rest = rest[parts[rest] == "train"]
    return parts


def draw_lots(ids: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    """A number (N,) for each image, which hangs on its id and the seed alone."""
    digests = [hashlib.blake2b(id_bytes(f"{seed}\0{name}"), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), dtype=">u8")


def _share(config: DataConfig, name: LabelledName) -> float:
    """What part of the training images is held out for a split."""
    return 0.0 if config.split is None or name == "train" else float(getattr(config.split, name))


def _file(config: DataConfig, name: LabelledName) -> Path | None:
    """A split's rating file, or None for a test that is nowhere."""
    file = config.path(name)
    if file is None:
        if name == "test":
            return None
        raise DataError(
            f"data.{name}: no rating file, and no data.root to look in",
            "say where your images and ratings are: `data.root=FOLDER`",
        )
    if not file.exists():
        hint = "say where it is: `data.root=FOLDER`"
        if name == "val":
            hint = "name it: `data.val=FILE`; or hold some of the training images out: `data.split.val=0.1`"
        raise DataError(f"{file}: no such file", hint)
    return file


def _rows(ratings: Ratings, name: LabelledName, config: DataConfig) -> Ratings | None:
    """A split's rows of a file, or None for a test that the file of all splits does not have."""
    is_optional = name == "test" and config.test is None
    if ratings.splits is None:
        if name == "train" or ratings.file != config.path("train"):
            return ratings
        if is_optional:
            return None
        raise DataError(
            f"{ratings.file}: data.{name}: this is the training file, and no column of it says which rows are {name}",
            f"hold some out: `data.split.{name}=0.1`; or name the column: `data.columns.split=…`",
        )
    rows = ratings.splits == name
    if rows.any():
        return ratings.take(rows, f"{ratings.file.name}, its {name} rows")
    if is_optional:
        return None
    words, counts = np.unique(ratings.splits.astype(str), return_counts=True)
    there = ", ".join(f"{count} {word}" for word, count in zip(words, counts, strict=True))
    raise DataError(
        f"{ratings.file}: data.{name}: its column of splits says {name} of no row (there are {there})",
        "to take all rows, whatever it says: `data.columns.split=none`",
    )


def _part_origin(ratings: Ratings, name: LabelledName, split: SplitConfig) -> str:
    """Where the rows that `data.split` puts into a part come from."""
    share = getattr(split, name, 0.0)
    told = f"{share:.3g} held out" if share else f"less {split.val + split.test:.3g} held out"
    return f"{ratings.origin}, {told} by data.split (seed {split.seed})"
