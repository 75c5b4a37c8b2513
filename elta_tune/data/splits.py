"""The training, validation and test images: by files, by a column of one file, or held out here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig, SplitConfig
from elta_tune.data.readers import ImageList, Ratings, id_bytes, read_ratings, read_unlabelled
from elta_tune.errors import DataError, Settings, typed
from elta_tune.suggestions import did_you_mean

LabelledName = Literal["train", "val", "test"]
SplitName = Literal["train", "val", "test", "pool"]
LABELLED: tuple[LabelledName, ...] = ("train", "val", "test")
SPLITS: tuple[SplitName, ...] = (*LABELLED, "pool")
TABLES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".parquet")
"""How the names of rating files end."""


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


def read_splits(
    config: DataConfig, names: Collection[str] = SPLITS, problems: list[DataError] | None = None
) -> SplitRatings:
    """The ratings of the named splits; a test or a pool that does not exist is left out.

    A split is the rows of its own file (`data.val`) or of the one file of all (`data.ratings`); where that has a column
    of splits, its rows. What `data.split` holds out is taken from the training rows.

    Args:
        problems: where given, wrong rows are left out and reported here.

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
            files[file] = read_ratings(file, config, problems)
        rows = _rows(files[file], source, config)
        if rows is not None and config.split is not None and source == "train":
            parts = hold_out(rows, config.split) if parts is None else parts
            rows = rows.take(parts == name, _part_origin(rows, name, config.split))
        if rows is not None:
            found[name] = rows
    pool = config.path("pool") if "pool" in names else None
    return SplitRatings(found, None if pool is None else read_unlabelled(pool, config))


def ignored_split_files(config: DataConfig) -> list[str]:
    """A note for each file of the root that is not read because its split is held out."""
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
    Which one depends on its id and the seed alone: so the order of the rows does not matter.

    Raises:
        DataError: there are too few images for a part.
    """
    ranks = hash_ranks(ratings.ids, split.seed)
    parts = np.full(len(ratings.ids), "train")
    rest = np.lexsort((ranks, ratings.scores))
    for name in ("val", "test"):
        share: float = getattr(split, name)
        count = round(share * len(parts))
        if share and not 0 < count < len(rest):
            raise DataError(f"{ratings.file}: data.split.{name}: {share:g} of {len(parts)} images makes an empty part")
        for run in np.array_split(rest, count) if count else ():
            parts[run[ranks[run].argmin()]] = name
        rest = rest[parts[rest] == "train"]
    return parts


def hash_ranks(ids: NDArray[np.object_], seed: int) -> NDArray[np.uint64]:
    """A number (N,) for each image, which depends only on its id and the seed."""
    digests = [hashlib.blake2b(id_bytes(f"{seed}\0{name}"), digest_size=8).digest() for name in ids]
    return np.frombuffer(b"".join(digests), dtype=">u8")


def _share(config: DataConfig, name: LabelledName) -> float:
    """The share of the training images that is held out for a split."""
    return 0.0 if config.split is None or name == "train" else float(getattr(config.split, name))


def _file(config: DataConfig, name: LabelledName) -> Path | None:
    """A split's rating file, or None for a test that does not exist."""
    file = config.path(name)
    if file is not None and file.exists():
        return file
    if file is None and name == "test":
        return None
    if file is None:
        raise DataError(
            f"data.{name}: no rating file is named, and data.root is not set",
            "name the folder of images and ratings: `data.root=FOLDER`",
        )
    if config.root is not None and not config.root.is_dir():
        raise _no_root(config.root)
    if getattr(config, name) is None and config.ratings is None:
        raise _no_default(file, name)
    near = did_you_mean(file.name, [other.name for other in _tables(file.parent)])
    raise DataError(f"data.{name if getattr(config, name) else 'ratings'}: {file}: no such file{near}")


def _no_root(root: Path) -> DataError:
    if root.is_file():
        settings = {"data.root": str(root.parent), "data.ratings": root.name}
        return DataError(f"data.root: {root}: is a file, not a folder", f"name both: {typed(settings)}", settings)
    siblings = [path.name for path in root.parent.iterdir() if path.is_dir()] if root.parent.is_dir() else []
    return DataError(f"data.root: {root}: there is no such folder{did_you_mean(root.name, siblings)}")


def _no_default(file: Path, name: LabelledName) -> DataError:
    """Says how to go on where the root has no `train.csv` or no `val.csv`: with the files that it has."""
    tables = [table for table in _tables(file.parent) if table.stem not in ("pool", "test", "val")]
    named = [table for table in tables if re.search(rf"(?<![a-z]){name}", table.stem.lower())]
    problem = f"{file}: no such file"
    if len(named) == 1 or (name == "train" and len(tables) == 1):
        field, table = (name, named[0]) if len(named) == 1 else ("ratings", tables[0])
        settings: Settings = {f"data.{field}": table.name}
        return DataError(problem, f"name the file that is there: {typed(settings)}", settings)
    if name == "val":
        settings = {"data.split.val": 0.1}
        if (file.parent / "test.csv").exists():
            settings["data.split.test"] = 0
        hint = f"hold some training images out: {typed(settings)}; or name a file: `data.val=FILE`"
        return DataError(problem, hint, settings)
    if not tables:
        return DataError(problem, "there is no table in this folder; to name another one: `data.root=FOLDER`")
    names = ", ".join(table.name for table in tables)
    return DataError(problem, f"name the file of ratings: `data.ratings=FILE`, one of {names}")


def _tables(folder: Path) -> list[Path]:
    """The files of a folder that may be tables."""
    if not folder.is_dir():
        return []
    known = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in TABLES and path.is_file())
    return [path for path in known if not path.stem.lower().startswith(("readme", "license", "requirements"))]


def _rows(ratings: Ratings, name: LabelledName, config: DataConfig) -> Ratings | None:
    """A split's rows of a file, or None for a test that the file of all splits does not have."""
    is_optional = name == "test" and config.test is None
    if ratings.splits is None:
        if name == "train" or ratings.file != config.path("train"):
            return ratings
        if is_optional:
            return None
        settings = {f"data.split.{name}": 0.1}
        raise DataError(
            f"{ratings.file}: data.{name}: this is the training file, and it has no column of splits",
            f"hold some images out: {typed(settings)}; or name the column: `data.columns.split=COLUMN`",
            settings,
        )
    rows = ratings.splits == name
    if rows.any():
        return ratings.take(rows, f"{ratings.file.name}, its {name} rows")
    if is_optional:
        return None
    words, counts = np.unique(ratings.splits.astype(str), return_counts=True)
    there = ", ".join(f"{count} {word}" for word, count in zip(words, counts, strict=True))
    raise DataError(
        f"{ratings.file}: data.{name}: no row of its column of splits is {name} (there are {there})",
        "to take all rows: `data.columns.split=none`"
        + (f"; to hold some training images out: `data.split.{name}=0.1`" if name != "train" else ""),
    )


def _part_origin(ratings: Ratings, name: LabelledName, split: SplitConfig) -> str:
    """Where the rows that `data.split` puts into a part come from."""
    share = getattr(split, name, 0.0)
    part = f"{share:.3g} held out" if share else f"less {split.val + split.test:.3g} held out"
    return f"{ratings.origin}, {part} by data.split (seed {split.seed})"
