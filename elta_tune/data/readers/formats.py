"""The formats in which rating files are found, as data. To read another one, add it to `FORMATS`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from elta_tune.data.readers.columns import simplified
from elta_tune.data.readers.tables import Sheet, Table
from elta_tune.data.readers.text import SPACES
from elta_tune.errors import DataError


class Votes(NamedTuple):
    """Votes (N, K) for N images, at least one per row; `rows` (N,) are the table's rows of the images, None for all."""

    votes: NDArray[np.float64]
    rows: NDArray[np.int64] | None = None


class Scores(NamedTuple):
    """Scores (N,), and the column that they are from."""

    scores: NDArray[np.float64]
    column: str


def read_labels(table: Table, form: Format, ids: pd.Series[str]) -> Votes | Scores:
    """A row for each image, with its votes or its score."""
    if not form.votes:
        table.refuse_unlabelled(form.score)
        return Scores(table.numbers(form.score)[:, 0], form.score)
    table.refuse_unlabelled(*form.votes)
    votes = table.numbers(*form.votes)
    for position, name in enumerate(form.votes):
        table.refuse(votes[:, position] < 0, name, "is below 0")
    table.refuse(votes.sum(axis=1) == 0, form.votes[0], "no votes in this row", quoted=False, is_unlabelled=True)
    return Votes(votes)


def read_lists(table: Table, form: Format, ids: pd.Series[str]) -> Votes | Scores:
    """A row for each image, whose votes are a list in one cell."""
    (name,) = form.votes
    table.refuse_unlabelled(name)
    votes = np.zeros((len(ids), len(form.bins)))
    wrong = np.zeros(len(ids), bool)
    for row, cell in enumerate(table.frame[name]):
        try:
            votes[row] = np.array(cell if isinstance(cell, list) else [], dtype=np.float64)
            wrong[row] = len(cell) != len(form.bins)
        except (TypeError, ValueError):
            wrong[row] = True
    wrong |= ~np.isfinite(votes).all(axis=1) | (votes < 0).any(axis=1) | (votes.sum(axis=1) == 0)
    table.refuse(wrong, name, f"is not a list of {len(form.bins)} numbers of votes")
    return Votes(votes)


def count_votes(table: Table, form: Format, ids: pd.Series[str]) -> Votes | Scores:
    """A row for each vote: counts them, in the order in which the images come first."""
    table.refuse_unlabelled(form.score)
    ratings, bins = table.numbers(form.score)[:, 0], np.array(form.bins)
    columns = np.searchsorted(bins, ratings).clip(max=len(bins) - 1)
    table.refuse(bins[columns] != ratings, form.score, f"is none of the ratings {bins[0]:g}…{bins[-1]:g}")
    images = pd.factorize(ids)[0]  # numbered as they come
    first = np.unique(images, return_index=True)[1]
    votes = np.zeros((len(first), len(bins)))
    np.add.at(votes, (images, columns), 1)
    return Votes(votes, rows=first)


def read_predictions(table: Table, form: Format, ids: pd.Series[str]) -> Votes | Scores:
    """What a model predicted: distributions or, if a row is none, the logits of them."""
    table.refuse_unlabelled(*form.votes)
    values = table.numbers(*form.votes)
    return Votes(values if are_shares(values) else softmax(values, axis=1))


def are_shares(values: NDArray[np.float64]) -> bool:
    """Whether what a model predicted, (N, K), are shares, as they may be rounded; else they are logits."""
    return bool((values >= 0).all() and np.abs(values.sum(axis=1) - 1).max() <= 0.01)


@dataclass(frozen=True)
class Format:
    """A form of tables.

    Attributes:
        columns: what a table must have to be of this form; without a header, all its columns in their order.
        unless: columns that make it another form.
        only: whether a table of this form has no other columns.
        header: whether the first line names the columns.
        separator, kind: of the file, where the form needs one.
        id: columns that name the image, joined by "/"; if they are not there, one with the name of an id.
        votes: columns that count votes, or give their shares.
        bins: the rating of each, and with that the scale.
        score: column of scores, where there are no votes; else empty.
        scales: lowest and highest possible score; the first one that holds all of them; () where files differ.
        threshold: a MOS above it counts as beautiful; None is the middle of the scale.
        read: takes the labels from the cells.
    """

    columns: tuple[str, ...]
    unless: tuple[str, ...] = ()
    only: bool = False
    header: bool = True
    separator: str | None = None
    kind: Literal["json"] | None = None
    id: tuple[str, ...] = ()
    votes: tuple[str, ...] = ()
    bins: tuple[float, ...] = ()
    score: str = ""
    scales: tuple[tuple[float, float], ...] = ()
    threshold: float | None = None
    read: Callable[[Table, Format, pd.Series[str]], Votes | Scores] = read_labels

    def fits(self, sheet: Sheet) -> bool:
        """Whether a sheet is of this form."""
        separator = SPACES if sheet.separator == "\t" else sheet.separator
        if self.kind not in (None, sheet.kind) or self.separator not in (None, separator):
            return False
        if not self.header:
            return not sheet.has_header and len(sheet.columns) == len(self.columns)
        found = {name for name in sheet.columns if not name.startswith("unnamed ")}
        return (
            found >= set(self.columns) and not found & set(self.unless) and (not self.only or found == {*self.columns})
        )

    def respelled(self, columns: Sequence[str]) -> Format:
        """The form with the names of columns as a file spells them, where these differ in case, blanks, `_`, `-`."""
        spelled = {simplified(name): name for name in columns}

        def named(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(spelled.get(simplified(name), name) for name in names)

        votes = named(self.votes)
        return replace(self, columns=named(self.columns), unless=named(self.unless), id=named(self.id), votes=votes)


def in_a_row(columns: Sequence[str], stem: str, first: int) -> tuple[list[str], str | None]:
    """The columns of a stem and a number, in its order; and what is wrong if they do not count from `first` on."""
    found = sorted((name for name in columns if re.fullmatch(rf"{stem}\d+", name)), key=lambda name: (len(name), name))
    wanted = [f"{stem}{number}" for number in range(first, first + len(found))]
    if found == wanted:
        return found, None
    missing = next(name for name in wanted if name not in found)
    other = next(name for name in reversed(found) if name not in wanted)
    return found, f"there is no column {missing}, but {other} is there"


def counts(columns: Sequence[str]) -> Format | None:
    """`count_1, …, count_K` of any K."""
    votes, wrong = in_a_row(columns, "count_", 1)
    if len(votes) < 2:
        return None

    def refuse(table: Table, form: Format, ids: pd.Series[str]) -> Votes | Scores:
        hint = "count_1 counts the lowest rating; to read scores instead: `data.columns.score=…`"
        raise DataError(f"{table.path}: {wrong}", hint)

    bins = tuple(float(number) for number in range(1, len(votes) + 1))
    return Format(tuple(votes), votes=tuple(votes), bins=bins, read=refuse if wrong else read_labels)


AVA_BINS = tuple(float(rating) for rating in range(1, 11))
AVA_VOTES = tuple(f"score{rating + 1}" for rating in range(1, 11))
"""The AVA tables that ELTA, TANet and EAT share: score2 counts the ratings of 1."""
NOT_AVA = ("score1", "score12")
"""Votes, or shares, of other bins than AVA's ten: they would be lost."""
PARA_BINS = tuple(rating / 2 for rating in range(2, 11))
PARA_VOTES = tuple(f"aestheticScore_{rating}" for rating in PARA_BINS)
PARA_ID = ("sessionId", "imageName")
"""Names of images repeat in each session, in PARA's tables of scores as in those of votes."""
KONIQ_VOTES = ("c1", "c2", "c3", "c4", "c5")

FORMATS: Mapping[str, Format | Callable[[Sequence[str]], Format | None]] = {
    "ava": Format(AVA_VOTES, unless=("gt", *NOT_AVA), id=("image_id",), votes=AVA_VOTES, bins=AVA_BINS, threshold=5.0),
    "ava_txt": Format(
        ("row", "image_id", *AVA_VOTES, "tag1", "tag2", "challenge_id"),
        header=False,
        separator=SPACES,
        id=("image_id",),
        votes=AVA_VOTES,
        bins=AVA_BINS,
        threshold=5.0,
    ),
    "ava_idealo": Format(
        ("image_id", "label"),
        kind="json",
        id=("image_id",),
        votes=("label",),
        bins=AVA_BINS,
        threshold=5.0,
        read=read_lists,
    ),
    "ava_nima": Format(
        ("image_id", *AVA_VOTES), header=False, id=("image_id",), votes=AVA_VOTES, bins=AVA_BINS, threshold=5.0
    ),
    "predictions": Format(
        ("image_id", "gt", "score", *AVA_VOTES),
        unless=NOT_AVA,
        id=("image_id",),
        votes=AVA_VOTES,
        bins=AVA_BINS,
        threshold=5.0,
        read=read_predictions,
    ),
    "artimuse": Format(("image", "gt_score"), kind="json", id=("image",), score="gt_score"),
    "tad66k": Format(("image", "score"), only=True, id=("image",), score="score", scales=((0, 10),)),
    "para": Format(("imageName", "sessionId", *PARA_VOTES), id=PARA_ID, votes=PARA_VOTES, bins=PARA_BINS),
    "para_prompt_det": Format(
        ("ImageFile", "Composition", "Score"), id=("ImageFile",), score="Score", scales=((1, 5),)
    ),
    "aadb": Format(("name", "score"), header=False, separator=SPACES, id=("name",), score="score", scales=((0, 1),)),
    "koniq10k": Format(
        ("image_name", "MOS", "MOS_zscore"), unless=KONIQ_VOTES, id=("image_name",), score="MOS", scales=((1, 5),)
    ),
    "koniq10k_votes": Format(
        ("image_name", *KONIQ_VOTES), id=("image_name",), votes=KONIQ_VOTES, bins=(1.0, 2.0, 3.0, 4.0, 5.0)
    ),
    "spaq": Format(("MOS", "Brightness"), score="MOS", scales=((0, 10), (0, 100))),
    "eva": Format(
        ("image_id", "user_id", "score"),
        id=("image_id",),
        score="score",
        bins=tuple(float(rating) for rating in range(11)),
        read=count_votes,
    ),
    "icaa17k": Format(("ID", "color", "MOS"), id=("ID",), score="MOS"),
    "agiqa3k": Format(("name", "prompt", "mos_quality"), id=("name",), score="mos_quality", scales=((0, 5),)),
    "pyiqa": Format(("mos", "official_split"), score="mos"),
    "counts": counts,
}
"""Each form by the name that `data.format` gives it; a function of the columns where these are not always the same."""


def fitting(sheet: Sheet) -> dict[str, Format]:
    """The forms that a sheet may be of.

    Where its columns are those of none, they may be spelled another way: of such forms only those count whose columns
    are votes, because the votes themselves show the scale.
    """
    found = {name: form for name in FORMATS if (form := _form(name, sheet.columns)) and form.fits(sheet)}
    if found or not sheet.has_header:
        return found
    keys = [simplified(name) for name in sheet.columns]
    if len({*keys}) < len(keys):
        return {}
    numbered = [re.sub(r"^count(?=\d)", "count_", key) for key in keys]
    forms = {name: form for name in FORMATS if (form := _form(name, numbered)) and form.votes}
    respelled = {name: form.respelled(sheet.columns) for name, form in forms.items()}
    return {name: form for name, form in respelled.items() if form.fits(sheet)}


def _form(name: str, columns: Sequence[str]) -> Format | None:
    entry = FORMATS[name]
    return entry if isinstance(entry, Format) else entry(columns)
