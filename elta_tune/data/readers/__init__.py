"""Rating files as they are found: one table of formats, chosen by the columns or by `data.format`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.folders import list_folder
from elta_tune.data.readers.choice import Choice, choose, choose_ids
from elta_tune.data.readers.columns import simplified
from elta_tune.data.readers.formats import Scores, Votes
from elta_tune.data.readers.tables import Formula, RowsError, Table, load, open_sheet
from elta_tune.errors import DataError
from elta_tune.method.spread import spread_scores

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What a column of splits says."""
SPLIT_NUMBERS = {"0": "train", "1": "val", "2": "test", "0.0": "train", "1.0": "val", "2.0": "test"}
"""What pyiqa's `official_split` says, too: in another column, numbers may be those of folds."""

COMMON_SCALES = ((0, 1), (1, 5), (1, 7), (1, 10), (0, 10), (0, 100), (-1, 1))
"""Suggested where a scale is unknown; the first one that contains the scores."""
PER_IMAGE = ("ids", "scores", "distributions", "votes", "splits")
"""Fields of `Ratings` with a row for each image."""


@dataclass(frozen=True)
class ImageList:
    """N images without labels, as a file or a folder lists them.

    Attributes:
        file: the file or the folder.
        origin: which rows of it these are, in words.
        format: the name of its format.
        ids: (N,) text.
        notes: what the user should know of them.
    """

    file: Path
    origin: str
    format: str
    ids: NDArray[np.object_]
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def take(self, rows: NDArray[np.bool_], origin: str) -> Self:
        """The rows that are marked, (N,)."""
        kept = {name: value[rows] for name, value in vars(self).items() if name in PER_IMAGE and value is not None}
        return replace(self, origin=origin, **kept)


@dataclass(frozen=True)
class Ratings(ImageList):
    """The ratings of N images, in the order of their file.

    Attributes:
        scores: (N,) MOS on the data set's own scale.
        scale: the lowest and highest possible rating.
        threshold: a MOS above it counts as beautiful; below it, where a low rating is a good one.
        distributions: (N, K), each row sums to 1; None where there are scores only.
        votes: (N,) how many votes each is of; None where the file has shares of votes, or scores.
        bins: (K,) the rating of each column of them.
        is_spread: whether the distributions were made from the scores (`data.spread`).
        splits: (N,) train, val or test, where a column says so.
        higher_is_better: whether a high rating is a good one.
        unlabelled: ids of the rows of the file that were skipped because they have no rating.
    """

    scores: NDArray[np.float64]
    scale: tuple[float, float]
    threshold: float
    distributions: NDArray[np.float32] | None = None
    votes: NDArray[np.float64] | None = None
    bins: NDArray[np.float64] | None = None
    is_spread: bool = False
    splits: NDArray[np.object_] | None = None
    higher_is_better: bool = True
    unlabelled: tuple[str, ...] = ()


def id_bytes(text: str) -> bytes:
    """Ids as bytes to be hashed: file names need not be UTF-8."""
    return text.encode("utf-8", "surrogatepass")


def read_ratings(path: Path, config: DataConfig, problems: list[DataError] | None = None) -> Ratings:
    """Reads a table of rated images.

    Args:
        problems: where given, wrong rows are left out and reported here: so a check finds more than the first one.

    Raises:
        DataError: the file can't be read, its columns show no format, or a row is wrong: file, line, column, rule.
        ConfigError: there is no such `data.format`.
    """
    sheet = open_sheet(path, config.columns.id)
    choice = choose(sheet, config)
    table = load(sheet, choice.columns, text={*choice.id, *([choice.split] if choice.split else [])})
    unlabelled: list[str] = []
    while True:
        try:
            return replace(_read(table, choice, config), unlabelled=tuple(unlabelled))
        except RowsError as error:
            if error.rows.all():
                raise
            if error.is_unlabelled and config.on_unlabelled == "skip":
                unlabelled += _ids(table, choice)[error.rows].tolist()
            elif problems is None:
                raise
            else:
                problems.append(error)
            table = table.without(error.rows)


def _read(table: Table, choice: Choice, config: DataConfig) -> Ratings:
    ids = _ids(table, choice)
    labels = choice.form.read(table, choice.form, ids)
    first_rows = labels.rows if isinstance(labels, Votes) else None
    if first_rows is None:
        _refuse_repeated(table, choice, ids)
    rows = slice(None) if first_rows is None else first_rows
    listed = ImageList(table.path, table.path.name, choice.name, ids.to_numpy(dtype=object)[rows])
    if isinstance(labels, Votes):
        ratings = _with_votes(listed, choice, labels.votes, config)
    else:
        ratings = _with_scores(listed, choice, table, labels, config)
    return ratings if choice.split is None else replace(ratings, splits=_splits(table, choice.split, config)[rows])


def read_unlabelled(path: Path, config: DataConfig) -> ImageList:
    """Reads a list of images without ratings: a folder, or a table, whose ratings are ignored if it has any.

    Raises:
        DataError: the file can't be read or names no column of ids.
    """
    if path.is_dir():
        listing = list_folder(path)
        return ImageList(path, path.name, "folder", np.array(listing.images, dtype=object), notes=listing.notes)
    sheet = open_sheet(path, config.columns.id)
    choice = choose_ids(sheet, config)
    table = load(sheet, choice.columns, text=choice.columns)
    ids = _ids(table, choice)
    _refuse_repeated(table, choice, ids)
    return ImageList(path, path.name, "list", ids.to_numpy(dtype=object))


def _ids(table: Table, choice: Choice) -> pd.Series[str]:
    """Ids, of several columns joined by "/" unless the last one has the others in it already."""
    for name in choice.id:
        part = table.text(name)
        table.refuse((part == "").to_numpy(), name, "no image id", quoted=False)
        table.refuse(part.str.contains("\0", regex=False).to_numpy(bool), name, "has a character that no id has: NUL")
        cells = table.frame[name]
        if cells.dtype == object:
            no_ids = (bool, Formula)
            odd = [isinstance(cell, no_ids) or not isinstance(cell, str | int | float) for cell in cells]
            table.refuse(np.array(odd, dtype=bool), name, "is not an id: neither text nor a number")
    *folders, last = choice.id
    ids = table.text(last)
    for name in reversed(folders):
        pairs = zip(table.text(name), ids, strict=True)
        ids = pd.Series([part if part.startswith(f"{folder}/") else f"{folder}/{part}" for folder, part in pairs])
    return ids


def _refuse_repeated(table: Table, choice: Choice, ids: pd.Series[str]) -> None:
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        name = ids[repeated].iloc[0]
        rule = f"{name!r} is a duplicate of line {table.line(int((ids == name).argmax()))}"
        table.refuse(repeated, "/".join(choice.id), rule, quoted=False)


def _splits(table: Table, column: str, config: DataConfig) -> NDArray[np.object_]:
    takes_numbers = config.columns.split is not None or simplified(column) == "officialsplit"
    words = table.text(column).str.lower()
    splits = words.map(SPLIT_WORDS | SPLIT_NUMBERS if takes_numbers else SPLIT_WORDS)
    wrong = splits.isna().to_numpy()
    hint = "to ignore this column: `data.columns.split=none`"
    if not takes_numbers and words[wrong].isin(SPLIT_NUMBERS).any():
        hint = f"if 0, 1, 2 are train, val, test: `data.columns.split={column}`; {hint}"
    table.refuse(wrong, column, "is not a split (train, val, test)", hint=hint)
    return splits.to_numpy(dtype=object)


def _with_votes(listed: ImageList, choice: Choice, votes: NDArray[np.float64], config: DataConfig) -> Ratings:
    bins = np.array(choice.form.bins)
    scale = config.scale or (bins[0], bins[-1])
    if scale[0] > bins[0] or scale[1] < bins[-1]:
        raise DataError(f"{listed.file}: data.scale: {_span(scale)} does not contain its ratings {_span(bins)}")
    if config.spread is not None:
        problem = f"the file has distributions of {len(bins)} bins; only scores are spread"
        raise DataError(f"{listed.file}: data.spread: {problem}", "leave it out: `data.spread=null`")
    totals = votes.sum(axis=1)
    distributions = votes / totals[:, None]
    return Ratings(
        **vars(listed),
        scores=distributions @ bins,
        distributions=distributions.astype(np.float32),
        votes=totals if (votes == np.floor(votes)).all() else None,
        bins=bins,
        scale=scale,
        threshold=_threshold(choice, scale, config),
        higher_is_better=config.high_is_good,
    )


def _with_scores(listed: ImageList, choice: Choice, table: Table, labels: Scores, config: DataConfig) -> Ratings:
    scores, column = labels
    if config.scale is None and not choice.form.scales:
        raise _unknown_scale(listed.file, labels)
    scales = (config.scale,) if config.scale else choice.form.scales
    low, high = scale = next((scale for scale in scales if scores.max() <= scale[1]), scales[-1])
    hint = "if the scale is another one, set the lowest and highest possible rating: `data.scale=[LOWEST,HIGHEST]`"
    table.refuse((scores < low) | (scores > high), column, f"is outside the scale {_span(scale)}", hint=hint)
    ratings = Ratings(
        **vars(replace(listed, notes=_direction_notes(listed.file, column, config))),
        scores=scores,
        scale=scale,
        threshold=_threshold(choice, scale, config),
        higher_is_better=config.high_is_good,
    )
    if config.spread is None:
        return ratings
    bins = np.linspace(low, high, config.bins)
    if config.spread < (bins[1] - bins[0]) / 4:
        apart = f"a quarter of the distance of {config.bins} bins ({bins[1] - bins[0]:.3g})"
        raise DataError(
            f"{listed.file}: data.spread: {config.spread:g} is less than {apart}", "or set more `data.bins`"
        )
    return replace(ratings, distributions=spread_scores(scores, bins, config.spread), bins=bins, is_spread=True)


def _unknown_scale(file: Path, labels: Scores) -> DataError:
    """Names a common scale that contains the scores; only the user knows if it is the right one."""
    low, high = float(labels.scores.min()), float(labels.scores.max())
    common = [list(scale) for scale in COMMON_SCALES if scale[0] <= low and high <= scale[1]]
    scale = common[0] if common else [low, high]
    typed = f"`data.scale=[{scale[0]:g},{scale[1]:g}]`"
    return DataError(
        f"{file}: {labels.column}: the rating scale is unknown; its scores are from {low:g} to {high:g}",
        f"set the lowest and highest possible rating, such as {typed}",
        {"data.scale": scale},
    )


def _direction_notes(file: Path, column: str, config: DataConfig) -> tuple[str, ...]:
    if config.higher_is_better is not None or "dmos" not in simplified(column):
        return ()
    return (
        f"{file}: {column}: a high rating counts as a good one; if this is a DMOS, where low is good: "
        "`data.higher_is_better=false`",
    )


def _threshold(choice: Choice, scale: tuple[float, float], config: DataConfig) -> float:
    known = config.threshold if config.threshold is not None else choice.form.threshold
    return sum(scale) / 2 if known is None else known


def _span(values: tuple[float, float] | NDArray[np.float64]) -> str:
    return f"{values[0]:g}…{values[-1]:g}"
