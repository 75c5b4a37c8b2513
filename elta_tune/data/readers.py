"""Rating files as they are found: one reader per format, chosen by the columns or by `data.format`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.errors import ConfigError, DataError, did_you_mean

ID_COLUMNS = ("image_id", "image", "image_name", "Image name", "imageName", "ImageFile", "ID", "name", "Image", "file")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Ratings:
    """What a rating file says.

    `ids` (N,) text; `distributions` (N, K) that sum to 1 and `scores` (N,) on the data set's own scale, None for
    unlabelled images; `bins` (K,) the rating of each column; a MOS above `threshold` counts as beautiful.
    """

    file: Path
    ids: NDArray[np.object_]
    distributions: NDArray[np.float32] | None = None
    scores: NDArray[np.float64] | None = None
    bins: NDArray[np.float64] | None = None
    scale: tuple[float, float] | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Reader:
    """A format: whether a table's columns are its, which of them count votes, and what their ratings are."""

    matches: Callable[[Sequence[str]], bool]
    vote_columns: Callable[[Sequence[str]], list[str]]
    threshold: float | None = None
    """None: the middle of the scale."""


AVA_COLUMNS = [f"score{rating + 1}" for rating in range(1, 11)]
"""The AVA tables that ELTA, TANet and EAT share: score2 counts the ratings of 1."""


def _count_columns(columns: Sequence[str]) -> list[str]:
    numbers = sorted(int(name[6:]) for name in columns if re.fullmatch(r"count_[1-9]\d*", name))
    return [f"count_{number}" for number in range(1, len(numbers) + 1)] if numbers else []


READERS: dict[str, Reader] = {
    "ava": Reader(lambda columns: set(AVA_COLUMNS) <= set(columns), lambda columns: AVA_COLUMNS, threshold=5.0),
    "counts": Reader(lambda columns: len(_count_columns(columns)) >= 2, _count_columns),
}
"""The formats of rated images, by the name that `data.format` gives them."""


def read_ratings(path: Path, config: DataConfig) -> Ratings:
    """Reads a table of rated images.

    Raises:
        DataError: the file can't be read, its columns tell no format, or a row is wrong: file, line, field, rule.
    """
    table = _read_table(path)
    reader = _reader(path, table, config.format)
    votes = reader.vote_columns(list(table.columns))
    ids = _ids(path, table, config.columns.id, votes)
    counts = _numbers(path, table, votes)
    totals = counts.sum(axis=1)
    _refuse(path, totals <= 0, votes[0], "no votes in this row")
    bins = np.arange(1, len(votes) + 1, dtype=np.float64)
    distributions = counts / totals[:, None]
    scale = config.scale or (1.0, float(len(votes)))
    threshold = config.threshold if config.threshold is not None else reader.threshold
    return Ratings(
        path,
        ids,
        distributions.astype(np.float32),
        distributions @ bins,
        bins,
        scale,
        sum(scale) / 2 if threshold is None else threshold,
    )


def read_unlabelled(path: Path, config: DataConfig) -> Ratings:
    """Reads a list of images without ratings: a folder, or a table whose ratings, if it has any, are not looked at.

    Raises:
        DataError: the file can't be read or names no column of ids.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        return Ratings(path, np.array([file.relative_to(path).as_posix() for file in files], dtype=object))
    table = _read_table(path)
    return Ratings(path, _ids(path, table, config.columns.id, []))


def _read_table(path: Path) -> pd.DataFrame:
    """The cells as text, in the order of the file, so that a bad one can be named."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "say where it is: --set data.root=FOLDER") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: the file is empty") from None
    except pd.errors.ParserError as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: can't be read as a table: {error}") from error
    if table.empty:
        raise DataError(f"{path}: there are no rows below the header")
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: rows have more cells than the header has columns ({', '.join(table.columns)})")
    return table


def _reader(path: Path, table: pd.DataFrame, name: str) -> Reader:
    columns = list(table.columns)
    if name != "auto":
        if name not in READERS:
            raise ConfigError(f"data.format: there is no {name!r}{did_you_mean(name, READERS)}: {', '.join(READERS)}")
        if not READERS[name].matches(columns):
            raise DataError(f"{path}: data.format: these columns are not {name}'s: {', '.join(columns)}")
        return READERS[name]
    matching = [reader for reader in READERS.values() if reader.matches(columns)]
    if len(matching) != 1:
        raise DataError(
            f"{path}: columns {', '.join(columns)} tell no single format",
            f"ratings are read from score2…score11 (AVA) or count_1…count_K; or say data.format: {', '.join(READERS)}",
        )
    return matching[0]


def _ids(path: Path, table: pd.DataFrame, given: str | None, votes: list[str]) -> NDArray[np.object_]:
    others = [name for name in table.columns if name not in votes]
    if given is not None and given not in others:
        raise DataError(f"{path}: data.columns.id: there is no column {given!r}{did_you_mean(given, others)}")
    candidates = [given] if given is not None else [name for name in ID_COLUMNS if name in others]
    if not candidates and len(others) == 1:
        candidates = others
    if len(candidates) != 1:
        found = (
            f"more than one column may name the image: {', '.join(candidates)}" if candidates else "no column of ids"
        )
        raise DataError(f"{path}: {found}", f"name it: --set data.columns.id=…, one of {', '.join(others)}")
    ids = table[candidates[0]].str.strip()
    _refuse(path, (ids == "").to_numpy(), candidates[0], "no image id")
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        _refuse(path, repeated, candidates[0], f"{ids[repeated].iloc[0]!r} stands in an earlier row too")
    return ids.to_numpy(dtype=object)


def _numbers(path: Path, table: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise DataError(f"{path}: there is no column {missing[0]}, but {columns[-1]} is there")
    values = np.empty((len(table), len(columns)))
    for position, name in enumerate(columns):
        numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        for wrong, rule in ((~np.isfinite(numbers), "is not a number"), (numbers < 0, "is below 0")):
            if wrong.any():
                text = table[name].iloc[int(wrong.argmax())]
                _refuse(path, wrong, name, f"{text!r} {rule}" if text else "is empty")
        values[:, position] = numbers
    return values


def _refuse(path: Path, wrong: NDArray[np.bool_], column: str, rule: str) -> None:
    """Names the first wrong row by its line, the header being line 1."""
    if wrong.any():
        more = f" (and {wrong.sum() - 1} more rows like it)" if wrong.sum() > 1 else ""
        raise DataError(f"{path}:{int(wrong.argmax()) + 2}: {column}: {rule}{more}")
