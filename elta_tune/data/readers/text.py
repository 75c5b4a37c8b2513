"""What the first lines of a text tell of it, and its rows: any delimiter, with a header or without."""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from elta_tune.errors import DataError

ID_COLUMNS = (
    *("image_id", "image", "image_name", "Image name", "imageName", "ImageFile", "ID", "name", "Image", "file"),
    *("img_name", "filename", "file_name"),
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPACES = " "
"""As a separator: any run of spaces or tabs."""


def encoding_of(path: Path) -> str:
    """UTF-8, or UTF-16 where a byte order mark says so."""
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """Names the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as wrong:
                byte = line[wrong.start]
                return DataError(f"{path}:{number}: can't be read: the byte {byte:#x} is not UTF-8", "save it as UTF-8")
    return DataError(f"{path}: can't be read: {error}", "save it as UTF-8")


def separator_of(first: str, second: str = "") -> str:
    """What separates the cells of the first two lines."""
    for separator in (",", "\t", ";"):
        if separator in first:
            return separator
    if "=" in first and first.partition("=")[0].strip().strip('"') in ID_COLUMNS:
        return "="
    words = first.split()
    if len(words) < 2:
        return ","
    if _is_number(words[-1]):
        return SPACES
    # `name score` is a header if numbers stand below; `Image name` is one column, and `my cat.png` an image
    below = second.split()
    return SPACES if words[0] in ID_COLUMNS and len(below) == len(words) and _is_number(below[-1]) else ","


def is_header(cells: Sequence[str], id_column: str | None = None) -> bool:
    """Whether cells name columns: a row has an image in front, or after a number, or numbers in all cells after its id.

    A lone cell looks like an id whatever it is: it is a header only if it is a known one, or `id_column`.
    """
    first, rest = cells[0], cells[1:]
    if first in ID_COLUMNS or (first == id_column and not first.isdecimal()):  # 1 is the first column of no header
        return True
    if not rest or _is_image(first):
        return False
    if _is_number(first) and any(_is_number(cell) or _is_image(cell) for cell in rest):
        return False
    if not all(map(_is_number, rest)):
        return True
    # photo,1,2,…,10 is a header whose columns are called by their ratings
    return len(rest) > 2 and all(a < b for a, b in itertools.pairwise(map(float, rest)))


def _is_image(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _is_number(cell: str) -> bool:
    try:
        return bool(np.isfinite(float(cell)))
    except ValueError:
        return False


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
