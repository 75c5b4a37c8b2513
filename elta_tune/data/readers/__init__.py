"""Rating files as they are found: one table of formats, chosen by the columns or by `data.format`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.readers.choice import Choice, choose, choose_ids
from elta_tune.data.readers.formats import Labels
from elta_tune.data.readers.spread import spread_scores
from elta_tune.data.readers.tables import IMAGE_SUFFIXES, Table, load, open_sheet
from elta_tune.errors import DataError

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "0"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "1"), "val"),
    **dict.fromkeys(("test", "testing", "2"), "test"),
}
"""What a column of splits says; the numbers are pyiqa's."""


@dataclass(frozen=True)
class Ratings:
    """What a rating file says of N images, in its order.

    Attributes:
        file: where it was read.
        origin: which rows of it these are, in words.
        format: the name of its form.
        ids: (N,) text.
        scores: (N,) MOS on the data set's own scale; None for unlabelled images.
        distributions: (N, K), each row sums to 1; None where there are scores only.
        votes: (N,) how many votes each is of; None where the file has shares of votes, or scores.
        bins: (K,) the rating of each column of them.
        is_spread: whether the distributions were made from the scores (`data.spread`).
        scale: the lowest and highest possible rating.
        threshold: a MOS above it counts as beautiful.
        splits: (N,) train, val or test, where a column says so.
    """

    file: Path
    origin: str
    format: str
    ids: NDArray[np.object_]
    scores: NDArray[np.float64] | None = None
    distributions: NDArray[np.float32] | None = None
    votes: NDArray[np.float64] | None = None
    bins: NDArray[np.float64] | None = None
    is_spread: bool = False
    scale: tuple[float, float] | None = None
    threshold: float | None = None
    splits: NDArray[np.object_] | None = None

    def take(self, rows: NDArray[np.bool_], origin: str) -> Ratings:
        """The rows that are marked, (N,)."""
        arrays = {name: getattr(self, name) for name in ("ids", "scores", "distributions", "votes", "splits")}
        kept = {name: array[rows] for name, array in arrays.items() if array is not None}
        return replace(self, origin=origin, **kept)


def read_ratings(path: Path, config: DataConfig) -> Ratings:
    """Reads a table of rated images.

    Raises:
        DataError: the file can't be read, its columns tell no form, or a row is wrong: file, line, column, rule.
        ConfigError: there is no such `data.format`.
    """
    sheet = open_sheet(path)
    choice = choose(sheet, config)
    table = load(sheet, choice.columns, text={*choice.id, *([choice.split] if choice.split else [])})
    ids = _ids(table, choice)
    labels = choice.form.read(table, choice.form, ids)
    if labels.rows is None:
        _refuse_repeated(table, choice, ids)
    rows = slice(None) if labels.rows is None else labels.rows
    ratings = Ratings(
        path,
        path.name,
        choice.name,
        ids.to_numpy(dtype=object)[rows],
        splits=None if choice.split is None else _splits(table, choice.split)[rows],
    )
    if labels.votes is not None:
        return _with_votes(ratings, choice, labels.votes, config)
    return _with_scores(ratings, choice, table, labels, config)


def read_unlabelled(path: Path, config: DataConfig) -> Ratings:
    """Reads a list of images without ratings: a folder, or a table whose ratings, if it has any, are not looked at.

    Raises:
        DataError: the file can't be read or names no column of ids.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]
        return Ratings(path, path.name, "folder", np.array(names, dtype=object))
    sheet = open_sheet(path)
    choice = choose_ids(sheet, config)
    table = load(sheet, choice.columns, text=choice.columns)
    ids = _ids(table, choice)
    _refuse_repeated(table, choice, ids)
    return Ratings(path, path.name, "list", ids.to_numpy(dtype=object))


def _ids(table: Table, choice: Choice) -> pd.Series[str]:
    parts = [table.text(name) for name in choice.id]
    for name, part in zip(choice.id, parts, strict=True):
        table.refuse((part == "").to_numpy(), name, "no image id", quoted=False)
    ids = parts[0]
    for part in parts[1:]:
        ids = ids + "/" + part
    return ids


def _refuse_repeated(table: Table, choice: Choice, ids: pd.Series[str]) -> None:
    repeated = ids.duplicated().to_numpy()
    if repeated.any():
        rule = f"{ids[repeated].iloc[0]!r} stands in an earlier row too"
        table.refuse(repeated, "/".join(choice.id), rule, quoted=False)


def _splits(table: Table, column: str) -> NDArray[np.object_]:
    words = table.text(column).str.lower()
    splits = words.map(SPLIT_WORDS)
    rule = "is no split (train, val, test); to take no notice of this column: --set data.columns.split=none"
    table.refuse(splits.isna().to_numpy(), column, rule)
    return splits.to_numpy(dtype=object)


def _with_votes(ratings: Ratings, choice: Choice, votes: NDArray[np.float64], config: DataConfig) -> Ratings:
    bins = np.array(choice.form.bins)
    scale = config.scale or (bins[0], bins[-1])
    if scale[0] > bins[0] or scale[1] < bins[-1]:
        raise DataError(f"{ratings.file}: data.scale: {_span(scale)} does not hold its ratings {_span(bins)}")
    if config.spread is not None:
        raise DataError(
            f"{ratings.file}: data.spread: it has distributions of {len(bins)} bins; only scores are spread"
        )
    totals = votes.sum(axis=1)
    distributions = votes / totals[:, None]
    return replace(
        ratings,
        scores=distributions @ bins,
        distributions=distributions.astype(np.float32),
        votes=totals if (votes == np.floor(votes)).all() else None,
        bins=bins,
        scale=scale,
        threshold=_threshold(choice, scale, config),
    )


def _with_scores(ratings: Ratings, choice: Choice, table: Table, labels: Labels, config: DataConfig) -> Ratings:
    scores, column = labels.scores, choice.form.score
    assert scores is not None
    assert column is not None
    if config.scale is None and not choice.form.scales:
        raise DataError(
            f"{ratings.file}: {column}: from {scores.min():g} to {scores.max():g}, on a scale that no one has stated",
            "say the lowest and highest possible score, such as --set data.scale=[1,10]",
        )
    scales = (config.scale,) if config.scale else choice.form.scales
    low, high = scale = next((scale for scale in scales if scores.max() <= scale[1]), scales[-1])
    rule = f"is outside the scale {_span(scale)}; if that is another, say it: --set data.scale=[lowest,highest]"
    table.refuse((scores < low) | (scores > high), column, rule)
    ratings = replace(ratings, scores=scores, scale=scale, threshold=_threshold(choice, scale, config))
    if config.spread is None:
        return ratings
    bins = np.linspace(low, high, config.bins)
    if config.spread < (bins[1] - bins[0]) / 4:
        apart = f"a quarter of the distance of {config.bins} bins ({bins[1] - bins[0]:.3g})"
        raise DataError(
            f"{ratings.file}: data.spread: {config.spread:g} is less than {apart}", "or take more data.bins"
        )
    return replace(ratings, distributions=spread_scores(scores, bins, config.spread), bins=bins, is_spread=True)


def _threshold(choice: Choice, scale: tuple[float, float], config: DataConfig) -> float:
    known = config.threshold if config.threshold is not None else choice.form.threshold
    return sum(scale) / 2 if known is None else known


def _span(values: tuple[float, float] | NDArray[np.float64]) -> str:
    return f"{values[0]:g}…{values[-1]:g}"
