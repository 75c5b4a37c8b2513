"""The format of a table, and which of its columns hold ids, ratings and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from elta_tune.config import DataConfig
from elta_tune.data.readers.columns import (
    ID_COLUMNS,
    OTHER_ID_COLUMNS,
    OTHER_SCORE_COLUMNS,
    SCORE_COLUMNS,
    SPLIT_COLUMNS,
    find_column,
    known_columns,
)
from elta_tune.data.readers.formats import FORMATS, PARA_ID, Format, fitting, read_labels
from elta_tune.data.readers.tables import Sheet
from elta_tune.errors import ConfigError, DataError
from elta_tune.suggestions import did_you_mean

PLAIN = "plain"
"""What `data.format` calls any other table: a column of ids and one of scores, on a scale that the recipe states."""


@dataclass(frozen=True)
class Choice:
    """How a sheet is read: `id` columns are joined by "/", `split` says which split a row is of."""

    name: str
    form: Format
    columns: tuple[str, ...]
    id: tuple[str, ...]
    split: str | None


def choose(sheet: Sheet, config: DataConfig) -> Choice:
    """How a table of rated images is read.

    Raises:
        DataError: no form or more than one fits, or a column that is named is not there.
        ConfigError: there is no such `data.format`.
    """
    name, form = _form(sheet, config)
    columns = sheet.columns if form.header else form.columns
    if form.score:
        form = replace(form, score=_given_column(sheet.path, "score", form.score, columns))
    split = _split_column(sheet.path, columns, config.columns.split)
    taken = {*form.votes, form.score, split}
    others = [column for column in columns if column not in taken]
    return Choice(name, form, columns, _id_columns(sheet.path, others, form, config.columns.id), split)


def choose_ids(sheet: Sheet, config: DataConfig) -> Choice:
    """How a list of images is read, whatever other columns it has.

    Raises:
        DataError: no column or more than one may name the image.
    """
    forms = list(fitting(sheet).values())
    form = forms[0] if len(forms) == 1 else Format(())
    columns = sheet.columns if form.header else form.columns
    others = [column for column in columns if column not in {*form.votes, form.score}]
    given = config.columns.id and find_column(others, config.columns.id)  # only the file of rated images may have it
    return Choice("list", form, columns, _id_columns(sheet.path, others, form, given), None)


def _form(sheet: Sheet, config: DataConfig) -> tuple[str, Format]:
    found = fitting(sheet)
    if config.format != "auto":
        found = _named(sheet, config, found)
    if config.columns.score is not None:
        name, form = found.popitem() if len(found) == 1 else (PLAIN, Format(()))
        return name, replace(form, votes=(), bins=(), score=config.columns.score, read=read_labels)
    if len(found) == 1:
        return found.popitem()
    hint = "name the columns: `data.columns.id=…` `data.columns.score=…`; or the format: `data.format=…`"
    if found:
        raise DataError(f"{sheet.path}: the format may be {' or '.join(found)}", hint)
    scores = known_columns(sheet.columns, SCORE_COLUMNS, OTHER_SCORE_COLUMNS)
    if not scores:
        listed = ", ".join(sheet.columns)
        raise DataError(f"{sheet.path}: no column has a common name of a score; its columns are {listed}", hint)
    if len(scores) > 1:
        raise DataError(f"{sheet.path}: several columns may be the score: {', '.join(scores)}", hint)
    return PLAIN, Format((), score=scores[0])


def _named(sheet: Sheet, config: DataConfig, found: dict[str, Format]) -> dict[str, Format]:
    """The form that the recipe names."""
    name = config.format
    if name == PLAIN:
        return {}
    if name not in FORMATS:
        known = [*FORMATS, PLAIN]
        raise ConfigError(
            f"data.format: there is no {name!r}{did_you_mean(name, known)}", f"there are: {', '.join(known)}"
        )
    if name not in found:
        raise DataError(f"{sheet.path}: data.format: this is not {name}: its columns are {', '.join(sheet.columns)}")
    return {name: found[name]}


def _id_columns(path: Path, others: Sequence[str], form: Format, given: str | None) -> tuple[str, ...]:
    if given is not None:
        return (_given_column(path, "id", given, others),)
    for known in (form.id, PARA_ID):
        if known and set(known) <= set(others):
            return known
    candidates = known_columns(others, ID_COLUMNS, OTHER_ID_COLUMNS) or list(others if len(others) == 1 else ())
    if len(candidates) != 1:
        several = f"several columns may name the image: {', '.join(candidates)}"
        problem = several if candidates else "no column of ids: none has a common name of one"
        raise DataError(f"{path}: {problem}", f"name it: `data.columns.id=…`, one of {', '.join(others)}")
    return (candidates[0],)


def _split_column(path: Path, columns: Sequence[str], given: str | None) -> str | None:
    if given == "none":
        return None
    if given is not None:
        return _given_column(path, "split", given, columns)
    found = known_columns(columns, SPLIT_COLUMNS)
    if len(found) > 1:
        raise DataError(
            f"{path}: several columns may name the split: {', '.join(found)}",
            "name it: `data.columns.split=…`, or none",
        )
    return found[0] if found else None


def _given_column(path: Path, field: str, name: str, columns: Sequence[str]) -> str:
    """The column that the recipe names."""
    if (found := find_column(columns, name)) is None:
        raise DataError(f"{path}: data.columns.{field}: there is no column {name!r}{did_you_mean(name, columns)}")
    return found
