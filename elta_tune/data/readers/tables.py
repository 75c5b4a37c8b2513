"""Tables as they are found: text with any separator, with a header or without, JSON, Excel sheets, Parquet.

`open_sheet` looks at the first rows, which show the form; `load` then reads the cells, numbers as numbers. Only when a
cell is refused is the file read again, to name its line.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from elta_tune.data.readers.kinds import kind_of
from elta_tune.data.readers.text import (
    DECIMAL_COMMA,
    SPACES,
    encoding_of,
    is_header,
    not_utf8,
    records,
    sample,
    separator_of,
)
from elta_tune.errors import DataError, plural

MISSING = ("", "nan", "na", "n/a", "null", "none", "-")
"""Texts that mean a missing rating, in lower case."""


class RowsError(DataError):
    """Some rows of a table are wrong: `rows` (N,) marks them. `is_unlabelled`: all that they lack are ratings."""

    rows: NDArray[np.bool_]
    is_unlabelled = False


class Formula(str):
    """An Excel formula whose value was never computed."""


@dataclass(frozen=True)
class Sheet:
    """A file with named columns; without a header they are called 1, 2, ….

    `rows` holds the cells of a file that had to be read as a whole, `lines` the line or row of the file of each. In a
    text, `empty` columns, counted from 0, have neither a name nor a value in any row; they are not in `columns`.
    """

    path: Path
    kind: Literal["text", "json", "xlsx"]
    columns: tuple[str, ...]
    separator: str = ","
    has_header: bool = True
    empty: tuple[int, ...] = ()
    rows: Sequence[Sequence[Any]] = field(default=(), repr=False)
    lines: Sequence[int] = field(default=(), repr=False)


@dataclass(frozen=True)
class Table:
    """The cells of a sheet. Columns are pandas series, as numbers where every cell is one; the index counts rows."""

    sheet: Sheet
    frame: pd.DataFrame = field(repr=False)

    def without(self, rows: NDArray[np.bool_]) -> Table:
        """The table without the marked rows; the others keep their lines."""
        return replace(self, frame=self.frame[~rows])

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
            values[:, position] = self._numbers(name)
            self.refuse(~np.isfinite(values[:, position]), name, "is not a number")
        return values

    def _numbers(self, name: str) -> pd.Series[float]:
        """A column as numbers, NaN where a cell is none. Where commas separate no cells, they may be decimal ones."""
        column = self.frame[name]
        if column.dtype != bool and pd.api.types.is_numeric_dtype(column.dtype):
            return column
        text = self.text(name)
        numbers = pd.to_numeric(text, errors="coerce")
        commas = text[text.str.fullmatch(DECIMAL_COMMA)]
        if commas.empty or text.str.contains(".", regex=False).any():
            return numbers
        if commas.str.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}").all():
            rule = "may be 1.234 or 1234: write a decimal point for the comma, or nothing"
            self.refuse(text.isin(commas).to_numpy(bool), name, rule)
        return numbers.where(~text.isin(commas), pd.to_numeric(text.str.replace(",", "."), errors="coerce"))

    def refuse_unlabelled(self, *names: str) -> None:
        """Refuses rows that are empty in all of these columns of ratings.

        Raises:
            RowsError: there are some.
        """
        missing = np.full(len(self.frame), True)
        for name in names:
            if missing.any():
                column = self.frame[name]
                is_numeric = pd.api.types.is_numeric_dtype(column.dtype)
                missing &= column.isna() if is_numeric else self.text(name).str.lower().isin(MISSING).to_numpy(bool)
        self.refuse(missing, names[0], "is not a rating", is_unlabelled=True)

    def refuse(
        self,
        wrong: NDArray[np.bool_],
        name: str,
        rule: str,
        *,
        quoted: bool = True,
        is_unlabelled: bool = False,
        hint: str | None = None,
    ) -> None:
        """Refuses the wrong rows, if there are any, with the first of them in the message.

        Args:
            wrong: (N,).
            name: the column that the message names.
            rule: what is wrong with the `quoted` cell or, without it, with the row.

        Raises:
            RowsError: file, line, column, rule.
        """
        if wrong.any():
            row = int(wrong.argmax())
            cell = self.text(name).iloc[row] if quoted else ""
            problem = f"{cell!r} {rule}" if cell else "is empty" if quoted else rule
            if cell and isinstance(self.frame[name].iloc[row], Formula):
                problem = f"{cell!r} is a formula without a value: open the file in Excel or LibreOffice and save it"
            others = int(wrong.sum()) - 1
            more = f" (and {plural(others, 'more row')} like it)" if others else ""
            if is_unlabelled:
                hint = "type a rating, or leave such rows out: `data.on_unlabelled=skip`"
            settings = {"data.on_unlabelled": "skip"} if is_unlabelled else None
            error = RowsError(f"{self.path}:{self.line(row)}: {name}: {problem}{more}", hint, settings)
            error.rows, error.is_unlabelled = wrong, is_unlabelled
            raise error

    def line(self, row: int) -> int:
        """The line of the file in which a row begins, counted from 1."""
        row = int(self.frame.index[row])
        if self.sheet.kind == "text":
            return next(line for index, (line, _) in enumerate(_records(self.sheet)) if index == row)
        return self.sheet.lines[row] if self.sheet.lines else _item_line(self.path, row)


def open_sheet(path: Path, id_column: str | None = None) -> Sheet:
    """The columns of a file.

    Args:
        id_column: the name of the column of ids, where it is not a common one.

    Raises:
        DataError: the file does not exist, or is not a table.
    """
    try:
        kind = kind_of(path)
        if kind == "text":
            return _open_text(path, id_column)
        return {"json": _open_json, "jsonl": _open_json_lines, "xlsx": _open_xlsx, "parquet": _open_parquet}[kind](path)
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
    separator = separator_of(path)
    rows = [[cell.strip() for cell in cells] for cells in sample(path, separator)]
    if not rows:
        raise DataError(f"{path}: the file is empty")
    has_header = is_header(rows, id_column)
    first = [*rows[0], *[""] * (len(rows[1]) - len(rows[0]) if has_header and len(rows) > 1 else 0)]
    empty = _empty(path, separator, first, has_header=has_header)
    if not {*range(len(rows[0]), len(first))} <= {*empty}:  # a row is longer than the header, which `load` refuses
        first, empty = rows[0], tuple(number for number in empty if number < len(rows[0]))
    cells = [cell for number, cell in enumerate(first) if number not in empty]
    columns = _names(path, cells) if has_header else _numbered(cells)
    return Sheet(path, "text", columns, separator, has_header, empty)


def _empty(path: Path, separator: str, first: Sequence[str], *, has_header: bool) -> tuple[int, ...]:
    """The columns, counted from 0, whose cells are all empty; without a header only those after all others."""
    filled = [number for number, cell in enumerate(first) if cell]
    start = 0 if has_header else filled[-1] + 1 if filled else len(first)
    empty = {number for number in range(start, len(first)) if not first[number]}
    if empty:
        for _, cells in records(path, separator):
            empty -= {number for number in empty if number < len(cells) and cells[number].strip()}
    return tuple(sorted(empty))


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
    # pandas silently takes cells beyond the header in the first row for an index
    _refuse_long_row(sheet, columns, itertools.islice(_records(sheet), 1))
    spaces = sheet.separator == SPACES
    try:
        frame = pd.read_csv(
            sheet.path,
            sep=r"\s+" if spaces else sheet.separator,
            header=0 if sheet.has_header else None,
            names=_with_empty(sheet, columns),
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
    return frame[list(columns)] if sheet.empty else frame


def _with_empty(sheet: Sheet, columns: Sequence[str]) -> list[str]:
    """Names of all columns of a text, of the empty ones too."""
    names = iter(columns)
    total = len(columns) + len(sheet.empty)
    return [f"empty {number}" if number in sheet.empty else next(names) for number in range(total)]


def _refuse_long_row(sheet: Sheet, columns: Sequence[str], rows: Iterable[tuple[int, list[str]]]) -> None:
    for line, cells in rows:
        if len(cells) > len(columns) + len(sheet.empty):
            raise DataError(
                f"{sheet.path}:{line}: {len(cells)} cells in a table of {len(columns)} columns: {', '.join(columns)}"
            )


def _open_json(path: Path) -> Sheet:
    text = path.read_text(encoding=encoding_of(path))
    try:
        return _records_sheet(path, _parse(text))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _open_json_lines(path)
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{path}: should be a list of objects, but is nested too deeply to be read") from None


def _open_json_lines(path: Path) -> Sheet:
    lines, content = [], []
    with path.open(encoding=encoding_of(path)) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    content.append(_parse(line))
                except (json.JSONDecodeError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: this line is not JSON: {error}") from None
                lines.append(number)
    return _records_sheet(path, content, lines)


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: None if name == "NaN" else float(name))


def _records_sheet(path: Path, content: Any, lines: Sequence[int] = ()) -> Sheet:
    """The sheet of a list of objects, one for each image."""
    if not isinstance(content, list) or not content or not all(isinstance(item, Mapping) for item in content):
        raise DataError(f"{path}: should be a list of objects, one for each image")
    columns = _names(path, list(content[0]))
    cells = ([item.get(name) for name in content[0]] for item in content)
    rows = [["" if cell is None else cell for cell in row] for row in cells]
    return Sheet(path, "json", columns, rows=rows, lines=lines)


def _open_parquet(path: Path) -> Sheet:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        hint = "install the extra: pip install 'elta-tune[parquet]'; or save the table as CSV"
        raise DataError(f"{path}: Parquet files need pyarrow", hint) from None
    try:
        content = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: can't be read as a Parquet file: {reason}") from error
    if not content:
        raise DataError(f"{path}: the table has no rows")
    return _records_sheet(path, content, range(1, len(content) + 1))


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
            "install the extra: pip install 'elta-tune[xlsx]'; or save the sheet as CSV",
        ) from None
    try:
        cells = _excel_cells(path, openpyxl)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken archive may raise anything; all that counts is that it is not a sheet
        raise DataError(f"{path}: can't be read as an Excel sheet: {type(error).__name__}: {error}") from error
    filled = [(line, row) for line, row in enumerate(cells, start=1) if any(cell not in (None, "") for cell in row)]
    if not filled:
        raise DataError(f"{path}: the file is empty")
    columns = itertools.zip_longest(*(row for _, row in filled))
    used = [column for column in columns if any(cell not in (None, "") for cell in column)]
    header, *rows = [["" if cell is None else cell for cell in row] for row in zip(*used, strict=True)]
    return Sheet(path, "xlsx", _names(path, header), rows=rows, lines=[line for line, _ in filled[1:]])


def _excel_cells(path: Path, openpyxl: Any) -> list[list[Any]]:
    """The values of the first worksheet that has any; a formula whose value is not stored is a `Formula`."""
    stored = openpyxl.load_workbook(path, read_only=True, data_only=True)
    typed = openpyxl.load_workbook(path, read_only=True)
    try:
        for sheet, formulas in zip(stored.worksheets, typed.worksheets, strict=True):
            rows = [list(row) for row in sheet.iter_rows(values_only=True)]
            if any(cell is None for row in rows for cell in row):
                for row, source in zip(rows, formulas.iter_rows(values_only=True), strict=True):
                    row[:] = [_computed(*pair) for pair in zip(row, source, strict=True)]
            if any(cell is not None for row in rows for cell in row):
                return rows
        return []
    finally:
        stored.close()
        typed.close()


def _computed(value: Any, source: Any) -> Any:
    if value is not None or source is None:
        return value
    return Formula(source if isinstance(source, str) else getattr(source, "text", "=…"))


def _as_text(cell: Any) -> str:
    """A cell as one would type it: Excel stores the id 17 as 17.0."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
