"""Text files of ratings: their encoding, separator, header and rows."""

from __future__ import annotations

import codecs
import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from elta_tune.data.folders import IMAGE_SUFFIXES
from elta_tune.data.readers.columns import ID_NAMES, simplified
from elta_tune.errors import DataError

SPACES = " "
"""As a separator: any run of spaces or tabs."""
SEPARATORS = (",", "\t", ";", "|", "=", SPACES)
"""In the order in which they are preferred where several fit equally well."""
SAMPLE = 50
"""Rows that a separator is judged by."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")


def encoding_of(path: Path) -> str:
    """UTF-8, or UTF-16 or UTF-32 where a byte order mark or the zeros of Latin letters show it."""
    with path.open("rb") as file:
        start = file.read(64)
    marked = (name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark))
    if (encoding := next(marked, None)) is not None:
        return encoding
    even, odd = start[::2], start[1::2]
    if len(odd) > 1 and b"\0" not in even and not odd.strip(b"\0"):
        return "utf-16-le"
    return "utf-16-be" if len(odd) > 1 and b"\0" not in odd and not even.strip(b"\0") else "utf-8-sig"


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Names the first line that is not UTF-8."""
    hint = "save it as UTF-8 (Excel calls that: CSV UTF-8)"
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as wrong:
                byte = line[wrong.start]
                return DataError(f"{path}:{number}: can't be read: the byte {byte:#x} is not UTF-8", hint)
    return DataError(f"{path}: can't be read: {error}", hint)


def separator_of(path: Path) -> str:
    """What separates the cells: the one that makes most of the first rows as wide as the first one.

    Raises:
        DataError: the file is empty.
    """
    samples = {separator: sample(path, separator) for separator in SEPARATORS}
    if not samples[SPACES]:
        raise DataError(f"{path}: the file is empty")
    if path.suffix.lower() in (".tsv", ".tab") and len(samples["\t"][0]) > 1:
        return "\t"
    fits = {separator: _fit(separator, rows) for separator, rows in samples.items()}
    best = max(fits, key=fits.__getitem__)  # the first one of equals
    return best if fits[best][0] > 0 else ","


def sample(path: Path, separator: str) -> list[list[str]]:
    """The first rows, as far as they can be read."""
    rows: list[list[str]] = []
    try:
        rows.extend(cells for _, cells in itertools.islice(records(path, separator), SAMPLE))
    except DataError:  # what is wrong is reported once the separator is known
        pass
    return rows


def _fit(separator: str, rows: Sequence[Sequence[str]]) -> tuple[float, int]:
    """The share of rows that are as wide as the first one, and minus the number of cells that look divisible."""
    first, *others = rows or [[]]
    if len(first) < 2 or (separator == "=" and not is_id_name(first[0])):  # EVA's; elsewhere it is part of a name
        return 0.0, 0
    if separator == SPACES and not all(_is_number(cells[-1]) for cells in others or [first]):
        return 0.0, 0  # `Image name` is one column, and `my cat.png` one image
    width = len(_filled(first))
    as_wide = [len(cells) > 1 and width in (len(cells), len(_filled(cells))) for cells in rows]
    rivals = {*",\t;|"} - {separator}
    cells = (cell for row in rows for cell in row if not DECIMAL_COMMA.fullmatch(cell.strip()))
    return sum(as_wide) / len(rows), -sum(not rivals.isdisjoint(cell) for cell in cells)


def _filled(cells: Sequence[str]) -> Sequence[str]:
    """A row without the empty cells at its end."""
    filled = [number for number, cell in enumerate(cells, start=1) if cell.strip()]
    return cells[: filled[-1] if filled else 0]


def is_id_name(cell: str) -> bool:
    """Whether a cell is a common name of a column of image ids."""
    return simplified(cell.strip().strip('"')) in ID_NAMES


def is_header(rows: Sequence[Sequence[str]], id_column: str | None = None) -> bool:
    """Whether the first row names columns: a row has an image first, or after a number, or numbers after its id.

    A lone cell looks like an id whatever it is: it is a header if it is a common name of one, or `id_column`, or if it
    is not an image if there are images below.
    """
    first, rest = rows[0][0], rows[0][1:]
    if is_id_name(first) or (first == id_column and not first.isdecimal()):  # 1 is the first column of no header
        return True
    if _is_image(first):
        return False
    if not rest:
        return len(rows) > 1 and all(_is_image(cells[0]) for cells in rows[1:])
    if _is_number(first) and any(_is_number(cell) or _is_image(cell) for cell in rest):
        return False
    if not all(map(_is_number, rest)):
        return True
    # photo,1,2,…,10 is a header whose columns are named after their ratings
    return len(rest) > 2 and all(a < b for a, b in itertools.pairwise(map(_number, rest)))


def _is_image(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _is_number(cell: str) -> bool:
    return bool(np.isfinite(_number(cell)))


def _number(cell: str) -> float:
    """A cell as a number, with a decimal point or comma; NaN if it is none."""
    try:
        return float(cell.strip().replace(",", ".") if DECIMAL_COMMA.fullmatch(cell.strip()) else cell)
    except ValueError:
        return float("nan")


def records(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a text, as pandas counts them, each with the line that it begins in.

    Raises:
        DataError: a cell is far too long.
    """
    with path.open(encoding=encoding_of(path), newline="") as file:
        yield from _split_lines(file) if separator == SPACES else _csv_records(path, file, separator)


def _split_lines(file: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    yield from ((number, cells) for number, line in enumerate(file, start=1) if (cells := line.split()))


def _csv_records(path: Path, file: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file, delimiter=separator)
    start = 1
    try:
        for cells in reader:
            if cells and not (len(cells) == 1 and cells[0].isspace()):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: can't be read as a row: {error}; is a quote never closed?") from error
