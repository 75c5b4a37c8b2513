"""Kinds of files, by their first bytes and by how their names end."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from elta_tune.errors import DataError

Kind = Literal["text", "json", "jsonl", "xlsx", "parquet"]
READ: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
    ".parquet": "parquet",
    ".pq": "parquet",
}
OLD_EXCEL = "an Excel file of the old format"
SIGNATURES = {
    b"\xd0\xcf\x11\xe0": OLD_EXCEL,
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"MATLAB": "a MATLAB file",
    b"\x93NUMPY": "a NumPy array",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"%PDF": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"II*\0": "an image",
    b"MM\0*": "an image",
    b"RIFF": "an image",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (`git lfs pull` fetches that)",
    b"<!doctype": "a web page, perhaps of a download that failed",
    b"<html": "a web page, perhaps of a download that failed",
    b"<?xml": "an XML document",
}
ENDINGS = {
    ".xls": OLD_EXCEL,
    ".ods": "an OpenDocument sheet",
    ".pkl": "a Python pickle",
    ".pickle": "a Python pickle",
    ".npz": "an archive of NumPy arrays",
    ".mat": "a MATLAB file",
    ".tar": "a tar archive",
    ".rds": "an R file",
    ".rdata": "an R file",
}
"""Kinds without a signature of their own."""


def kind_of(path: Path) -> Kind:
    """How a file of ratings is to be read.

    Raises:
        DataError: it is a folder, no regular file, or of a kind that is not read.
        OSError: it can't be opened.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder, not a file of ratings")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is not a regular file")
    with path.open("rb") as file:
        start = file.read(1024)
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:4] == b"PK\x03\x04" and _is_excel(path):
        return "xlsx"
    ending = path.suffix.lower()
    lowered = start.lstrip().lower()
    signed = (kind for sign, kind in SIGNATURES.items() if start.startswith(sign) or lowered.startswith(sign))
    if (other := ENDINGS.get(ending) or next(signed, None)) is not None:
        hint = "save it as .xlsx or CSV" if other == OLD_EXCEL else "export the ratings as CSV"
        raise DataError(
            f"{path}: is {other}; files of ratings are text (CSV, TSV), JSON, Excel (.xlsx) or Parquet", hint
        )
    words = start.removeprefix(b"\xef\xbb\xbf").split(maxsplit=3)
    looks_like_json = b"".join(words).startswith((b'[{"', b'{"'))
    return READ.get(ending, "json" if looks_like_json else "text")


def _is_excel(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return "xl/workbook.xml" in archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return path.suffix.lower() in (".xlsx", ".xlsm")
