"""Which form a table is of, and which of its columns say what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from elta_tune.config import DataConfig
from elta_tune.data.readers.formats import FORMATS, PARA_ID, Format, fitting, read_labels
from elta_tune.data.readers.tables import Sheet
from elta_tune.data.readers.text import ID_COLUMNS
from elta_tune.errors import ConfigError, DataError
from elta_tune.suggestions import did_you_mean

SCORE_COLUMNS = ("score", "MOS", "mos", "gt_score", "gt", "aestheticScore_mean", "mos_quality", "Score")
SPLIT_COLUMNS = ("official_split", "split", "set")
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
    if form.score is not None and form.score not in columns:
        raise DataError(_no_column(sheet.path, "score", form.score, columns))
    split = _split_column(sheet.path, columns, config.columns.split)
    taken = {*form.votes, form.score, split}
    others = [column for column in columns if column not in taken]
    return Choice(name, form, columns, _id_columns(sheet.path, others, form, config.columns.id), split)


def choose_ids(sheet: Sheet, config: DataConfig) -> Choice:
    """How a list of images is read, whatever else is in it.

    Raises:
        DataError: no column or more than one may name the image.
    """
    forms = list(fitting(sheet).values())
    form = forms[0] if len(forms) == 1 else Format(())
    columns = sheet.columns if form.header else form.columns
    others = [column for column in columns if column not in {*form.votes, form.score}]
    given = config.columns.id if config.columns.id in others else None  # it may be of the rated images' file alone
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
    hint = "name the columns: --set data.columns.id=… --set data.columns.score=…; or the form: --set data.format=…"
    if found:
        raise DataError(f"{sheet.path}: this may be {' or '.join(found)}", hint)
    scores = [column for column in sheet.columns if column in SCORE_COLUMNS]
    if not scores:
        raise DataError(f"{sheet.path}: columns {', '.join(sheet.columns)}: none is known to hold ratings", hint)
    if len(scores) > 1:
        raise DataError(f"{sheet.path}: more than one column may be the score: {', '.join(scores)}", hint)
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
        if given not in others:
            raise DataError(_no_column(path, "id", given, others))
        return (given,)
    for known in (form.id, PARA_ID):
        if known and set(known) <= set(others):
            return known
    candidates = [name for name in others if name in ID_COLUMNS] or list(others if len(others) == 1 else ())
    if len(candidates) != 1:
        found = (
            f"more than one column may name the image: {', '.join(candidates)}" if candidates else "no column of ids"
        )
        raise DataError(f"{path}: {found}", f"name it: --set data.columns.id=…, one of {', '.join(others)}")
    return (candidates[0],)


def _split_column(path: Path, columns: Sequence[str], given: str | None) -> str | None:
    if given == "none":
        return None
    if given is not None:
        if given not in columns:
            raise DataError(_no_column(path, "split", given, columns))
        return given
    found = [name for name in columns if name in SPLIT_COLUMNS]
    if len(found) > 1:
        raise DataError(
            f"{path}: more than one column may name the split: {', '.join(found)}",
            "name it: --set data.columns.split=…, or none",
        )
    return found[0] if found else None


def _no_column(path: Path, field: str, name: str, columns: Sequence[str]) -> str:
    return f"{path}: data.columns.{field}: there is no column {name!r}{did_you_mean(name, columns)}"
