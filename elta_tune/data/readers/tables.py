"""Tables as they are found: text with any delimiter, with a header or without, JSON lists, Excel sheets.

`open_sheet` looks at the first line alone, which tells the form; `load` then reads the cells, numbers as numbers. Only
when a cell is refused is the file read again, to name its line.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.data.readers.text import SPACES, encoding_of, is_header, not_utf8, records, separator_of
from elta_tune.errors import DataError


@dataclass(frozen=True)
class Sheet:
    """A file of which the columns are known; without a header they are called 1, 2, ….

    `rows` holds the cells of a file that had to be read as a whole; `lines` where each stands in an Excel sheet. Each
    line of a text may end in `blanks` empty cells that are no column.
    """

    path: Path
    kind: Literal["text", "json", "xlsx"]
    columns: tuple[str, ...]
    separator: str = ","
    has_header: bool = True
    blanks: int = 0
    rows: Sequence[Sequence[Any]] = field(default=(), repr=False)
    lines: Sequence[int] = field(default=(), repr=False)


@dataclass(frozen=True)
class Table:
    """The cells of a sheet. Columns are pandas series, as numbers where every cell is one."""

    sheet: Sheet
    frame: pd.DataFrame = field(repr=False)

    @property
    def path(self) -> Path:
        """The file."""
        return self.sheet.path

    def text(self, name: str) -> pd.Series[str]:
        """A column as text, without spaces around."""
        column = self.frame[name]
        return (column.map(_as_text) if column.dtype == object else column.astype(str)).str.strip()

    def numbers(self, *names: str) -> NDArray[np.float64]:
        """Columns as finite numbers, (N, number of columns).

        Raises:
            DataError: names the first cell that is none.
        """
        values = np.empty((len(self.frame), len(names)))
        for position, name in enumerate(names):
            column = self.frame[name]
            if column.dtype == bool or not pd.api.types.is_numeric_dtype(column.dtype):
                column = pd.to_numeric(self.text(name), errors="coerce")
            values[:, position] = column
            wrong = ~np.isfinite(values[:, position])
            commas = wrong.any() and re.fullmatch(r"[-+]?\d*,\d+", self.text(name).iloc[int(wrong.argmax())])
            self.refuse(wrong, name, "is not a number" + (": write a decimal point for the comma" if commas else ""))
        return values

    def refuse(self, wrong: NDArray[np.bool_], name: str, rule: str, *, quoted: bool = True) -> None:
        """Refuses the first wrong row, if there is one.

        Args:
            wrong: (N,).
            name: the column that is told.
            rule: what is wrong, said of the `quoted` cell or, without it, of the row.

        Raises:
            DataError: file, line, column, rule.
        """
        if wrong.any():
            row = int(wrong.argmax())
            cell = self.text(name).iloc[row] if quoted else ""
            told = f"{cell!r} {rule}" if cell else "is empty" if quoted else rule
            more = f" (and {wrong.sum() - 1} more rows like it)" if wrong.sum() > 1 else ""
            raise DataError(f"{self.path}:{self.line(row)}: {name}: {told}{more}")

    def line(self, row: int) -> int:
        """The line of the file in which a row begins, counted from 1."""
        if self.sheet.kind == "text":
            return next(line for index, (line, _) in enumerate(_records(self.sheet)) if index == row)
        return self.sheet.lines[row] if self.sheet.lines else _item_line(self.path, row)


def open_sheet(path: Path, id_column: str | None = None) -> Sheet:
    """What the head of a file tells.

    Args:
        id_column: what the column of ids is called, beside the names that are known.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    try:
        if path.suffix.lower() == ".json":
            return _open_json(path)
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            return _open_xlsx(path)
        if path.suffix.lower() == ".xls" and path.exists():
            raise DataError(f"{path}: Excel's old format is not read", "save it as .xlsx or CSV")
        return _open_text(path, id_column)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from error
    except (UnicodeError, OSError) as error:
        raise DataError(f"{path}: can't be read as a table: {error}") from error


def load(sheet: Sheet, columns: Sequence[str], text: Collection[str]) -> Table:
    """Reads the cells.

    Args:
        columns: names of all columns, in order.
        text: the columns that stay text, so that 00001 is not 1.

    Raises:
        DataError: there are no rows, or a row has more cells than there are columns.
    """
    if sheet.kind == "text":
        frame = _load_text(sheet, columns, text)
    else:
        frame = pd.DataFrame(sheet.rows, columns=list(columns), dtype=object)
        numeric = [name for name in columns if name not in text]
        frame[numeric] = frame[numeric].infer_objects()
    if frame.empty:
        raise DataError(f"{sheet.path}: there are no rows" + (" below the header" if sheet.has_header else ""))
    return Table(sheet, frame)


def _open_text(path: Path, id_column: str | None) -> Sheet:
    with path.open(encoding=encoding_of(path), newline="") as file:
        lines = list(itertools.islice((line.strip("\r\n") for line in file if line.strip()), 2))
    if not lines:
        raise DataError(f"{path}: the file is empty")
    separator = separator_of(*lines)
    _, cells = next(records(path, separator))
    cells = [cell.strip() for cell in cells]
    blanks = _blanks(path, separator, len(cells)) if len(cells) > 1 and not cells[-1] else 0
    cells = cells[: len(cells) - blanks]
    has_header = is_header(cells, id_column)
    columns = _names(path, cells) if has_header else _numbered(cells)
    return Sheet(path, "text", columns, separator, has_header, blanks)


def _blanks(path: Path, separator: str, width: int) -> int:
    """1 where the last of so many cells is empty in all rows, as where each line ends in a separator; else 0."""
    return int(all(len(cells) < width or not cells[width - 1].strip() for _, cells in records(path, separator)))


def _numbered(cells: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, len(cells) + 1))


def _names(path: Path, cells: Sequence[Any]) -> tuple[str, ...]:
    """Names of columns, each once; a table that was saved with its index has an empty one."""
    names = tuple(str(cell).strip() or f"unnamed {number}" for number, cell in enumerate(cells, start=1))
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}: {name}: two columns have this name")
    return names


def _records(sheet: Sheet) -> Iterator[tuple[int, list[str]]]:
    """The rows of a text below its header, each with the line that it begins in."""
    return itertools.islice(records(sheet.path, sheet.separator), int(sheet.has_header), None)


def _load_text(sheet: Sheet, columns: Sequence[str], text: Collection[str]) -> pd.DataFrame:
    # pandas takes what the first row has too much for an index, without a word
    _refuse_long_row(sheet, columns, itertools.islice(_records(sheet), 1))
    spaces = sheet.separator == SPACES
    try:
        frame = pd.read_csv(
            sheet.path,
            sep=r"\s+" if spaces else sheet.separator,
            header=0 if sheet.has_header else None,
            names=[*columns, *(f"blank {number}" for number in range(sheet.blanks))],
            dtype=dict.fromkeys(text, "str"),
            na_filter=False,
            low_memory=False,
            quoting=csv.QUOTE_NONE if spaces else csv.QUOTE_MINIMAL,
            encoding=encoding_of(sheet.path),
        )
    except pd.errors.ParserError as error:
        _refuse_long_row(sheet, columns, _records(sheet))
        if "EOF inside string" in str(error):
            line = max(line for line, _ in records(sheet.path, sheet.separator))
            raise DataError(f"{sheet.path}:{line}: a quote is opened in this row and never closed") from None
        raise DataError(f"{sheet.path}: {' '.join(str(error).split())}") from None
    except UnicodeDecodeError as error:
        raise not_utf8(sheet.path, error) from error
    except OSError as error:
        raise DataError(f"{sheet.path}: can't be read as a table: {error}") from error
    return frame[list(columns)] if sheet.blanks else frame


def _refuse_long_row(sheet: Sheet, columns: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> None:
    for line, cells in rows:
        if len(cells) > len(columns) + sheet.blanks:
            raise DataError(
                f"{sheet.path}:{line}: {len(cells)} cells in a table of {len(columns)} columns: {', '.join(columns)}"
            )


def _open_json(path: Path) -> Sheet:
    text = path.read_text(encoding=encoding_of(path))
    try:
        content = json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}: should be a list of objects, but is nested too deeply to be read") from None
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise DataError(f"{path}: should be a list of objects, one for each image")
    columns = _names(path, list(content[0]))
    cells = ([item.get(name) for name in content[0]] for item in content)
    rows = [["" if cell is None else cell for cell in row] for row in cells]
    return Sheet(path, "json", columns, rows=rows)


def _item_line(path: Path, row: int) -> int:
    """The line in which an item of a JSON list begins."""
    text = path.read_text(encoding=encoding_of(path))
    position = text.index("{")
    for _ in range(row):
        _, end = json.JSONDecoder().raw_decode(text, position)
        position = text.index("{", end)
    return text.count("\n", 0, position) + 1


def _open_xlsx(path: Path) -> Sheet:
    try:
        import openpyxl
    except ImportError:
        raise DataError(
            f"{path}: Excel sheets need openpyxl",
            "install it: uv sync --extra xlsx, or pip install 'elta-tune[xlsx]'; or save the sheet as CSV",
        ) from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        cells = [list(row) for row in book.worksheets[0].iter_rows(values_only=True)]
        book.close()
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken archive may raise anything; that it is no sheet is all that counts
        raise DataError(f"{path}: can't be read as an Excel sheet: {type(error).__name__}: {error}") from error
    filled = [(line, row) for line, row in enumerate(cells, start=1) if any(cell is not None for cell in row)]
    if not filled:
        raise DataError(f"{path}: the file is empty")
    (_, header), *rows = filled
    columns = _names(path, ["" if cell is None else cell for cell in header])
    content = [["" if cell is None else cell for cell in row] for _, row in rows]
    return Sheet(path, "xlsx", columns, rows=content, lines=[line for line, _ in rows])


def _as_text(cell: Any) -> str:
    """A cell as one would type it: Excel keeps the id 17 as 17.0."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
