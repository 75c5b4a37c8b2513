"""Tables as they are found: text with any delimiter, with a header or without, JSON lists, Excel sheets.

`open_sheet` looks at the first line alone, which tells the form; `load` then reads the cells, numbers as numbers. Only
when a cell is refused is the file read again, to name its line.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.errors import DataError

ID_COLUMNS = ("image_id", "image", "image_name", "Image name", "imageName", "ImageFile", "ID", "name", "Image", "file")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPACES = " "
"""As a separator: any run of spaces or tabs."""


@dataclass(frozen=True)
class Sheet:
    """A file of which the columns are known; without a header they are called 1, 2, ….

    `rows` holds the cells of a file that had to be read as a whole; `lines` where each stands in an Excel sheet.
    """

    path: Path
    kind: Literal["text", "json", "xlsx"]
    columns: tuple[str, ...]
    separator: str = ","
    has_header: bool = True
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
            self.refuse(~np.isfinite(values[:, position]), name, "is not a number")
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


def open_sheet(path: Path) -> Sheet:
    """What the head of a file tells.

    Raises:
        DataError: there is no such file, or it is no table.
    """
    try:
        if path.suffix.lower() == ".json":
            return _open_json(path)
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            return _open_xlsx(path)
        return _open_text(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", "say where it is: --set data.root=FOLDER") from None
    except (UnicodeDecodeError, OSError, csv.Error) as error:
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


def _open_text(path: Path) -> Sheet:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), None)
    if first is None:
        raise DataError(f"{path}: the file is empty")
    separator = _separator(first.strip("\r\n"))
    _, cells = next(_records(Sheet(path, "text", (), separator, has_header=False)))
    cells = [cell.strip() for cell in cells]
    has_header = _is_header(cells)
    return Sheet(path, "text", _names(path, cells) if has_header else _numbered(cells), separator, has_header)


def _separator(line: str) -> str:
    for separator in (",", "\t", ";"):
        if separator in line:
            return separator
    if "=" in line and line.partition("=")[0].strip() in ID_COLUMNS:
        return "="
    words = line.split()
    return SPACES if len(words) > 1 and _is_number(words[-1]) else ","


def _is_header(cells: Sequence[str]) -> bool:
    """Data rows have numbers in all cells after the id, which is no known column's name; a lone id looks like one."""
    first, rest = cells[0], cells[1:]
    if first in ID_COLUMNS:
        return True
    looks_like_an_id = _is_number(first) or first.lower().endswith(IMAGE_SUFFIXES)
    if not rest:
        return not looks_like_an_id
    if not all(map(_is_number, rest)):
        return True
    # photo,1,2,…,10 is a header whose columns are called by their ratings
    numbers = [float(cell) for cell in rest]
    return len(rest) > 2 and not looks_like_an_id and all(a < b for a, b in itertools.pairwise(numbers))


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


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
    """The rows of a text below its header, as pandas counts them, each with the line that it begins in."""
    with sheet.path.open(encoding="utf-8-sig", newline="") as file:
        rows = _split_lines(file) if sheet.separator == SPACES else _csv_records(file, sheet.separator)
        if sheet.has_header:
            next(rows, None)
        yield from rows


def _split_lines(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    yield from ((number, cells) for number, line in enumerate(file, start=1) if (cells := line.split()))


def _csv_records(file: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator)
    start = 1
    for cells in reader:
        if cells and not (len(cells) == 1 and cells[0].isspace()):
            yield start, cells
        start = reader.line_num + 1


def _load_text(sheet: Sheet, columns: Sequence[str], text: Collection[str]) -> pd.DataFrame:
    spaces = sheet.separator == SPACES
    try:
        frame = pd.read_csv(
            sheet.path,
            sep=r"\s+" if spaces else sheet.separator,
            header=0 if sheet.has_header else None,
            names=list(columns),
            dtype=dict.fromkeys(text, "str"),
            na_filter=False,
            low_memory=False,
            quoting=csv.QUOTE_NONE if spaces else csv.QUOTE_MINIMAL,
            encoding="utf-8-sig",
        )
    except pd.errors.ParserError as error:
        _refuse_long_row(sheet, columns)
        raise DataError(f"{sheet.path}: {' '.join(str(error).split())}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{sheet.path}: can't be read as a table: {error}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # the first row is longer than the header
        _refuse_long_row(sheet, columns)
    return frame


def _refuse_long_row(sheet: Sheet, columns: Sequence[str]) -> None:
    for line, cells in _records(sheet):
        if len(cells) > len(columns):
            raise DataError(
                f"{sheet.path}:{line}: {len(cells)} cells in a table of {len(columns)} columns: {', '.join(columns)}"
            )


def _open_json(path: Path) -> Sheet:
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    if not isinstance(content, list) or not content or not all(isinstance(item, dict) for item in content):
        raise DataError(f"{path}: should be a list of objects, one for each image")
    columns = _names(path, list(content[0]))
    rows = [[item.get(name, "") for name in content[0]] for item in content]
    return Sheet(path, "json", columns, rows=rows)


def _item_line(path: Path, row: int) -> int:
    """The line in which an item of a JSON list begins."""
    text = path.read_text(encoding="utf-8-sig")
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
