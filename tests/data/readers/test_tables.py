"""The form of a table is judged by all it shows: its first bytes, its ending, several of its rows, its quotes."""

from __future__ import annotations

import gzip
import json
import pickle
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest

from elta_tune.config import DataConfig
from elta_tune.data.readers import read_ratings, read_unlabelled
from elta_tune.errors import DataError

SCALE = DataConfig(scale=(0, 10))


def written(folder: Path, text: str, name: str = "ratings.csv") -> Path:
    """A file of a text."""
    (folder / name).write_text(text)
    return folder / name


def read(file: Path, config: DataConfig = SCALE) -> dict[str, float]:
    """Scores by id."""
    ratings = read_ratings(file, config)
    assert ratings.scores is not None
    return dict(zip(ratings.ids.tolist(), ratings.scores.tolist(), strict=True))


TEXTS = {
    "a comma in a name": "name;score, mean;MOS\na;x;4\nb;y;5\n",
    "a comma in a name, decimal commas": "name;score, mean;MOS\na;1,5;4\nb;2,5;5\n",
    "decimal commas": "name;MOS\na;4,0\nb;5\n",
    "a semicolon in a name": "name,likes; all,MOS\na,1,4\nb,2,5\n",
    "quoted separators": 'name,MOS,tags\n"a",4,"x;y;z"\nb,"5","u;v;w"\n',
    "a separator that one row alone quotes": "name\tMOS\ttags, all\na\t4\tx, y\nb\t5\tz\n",
    "tabs": "name\tMOS\na\t4\nb\t5\n",
    "bars": "name|MOS\na|4\nb|5\n",
    "empty columns at the end": "name,MOS,,\na,4,,\nb,5,,\n",
    "an empty column between": "name,,MOS\na,,4\nb,,5\n",
    "empty cells beyond the header": "name,MOS\na,4,,\nb,5,,\n",
    "image_name,mean_score": "image_name,mean_score\na,4\nb,5\n",
    "Filename;Rating": "Filename;Rating\na;4\nb;5\n",
    "other case and blanks": "IMAGE ID , Mos \na,4\nb,5\n",
    "an uncertain name next to a certain one": "photo,ID,quality,MOS\nx,a,1,4\ny,b,1,5\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_read_by_all_it_shows(tmp_path: Path, name: str) -> None:
    assert read(written(tmp_path, TEXTS[name])) == {"a": 4, "b": 5}


def test_a_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    text = "name, whole\tMOS\na, x\t4\nb, y\t5\n"
    named = DataConfig.model_validate({"scale": (0, 10), "columns": {"id": "name, whole"}})
    assert read(written(tmp_path, text, "ratings.tsv"), named) == {"a, x": 4, "b, y": 5}


@pytest.mark.parametrize(
    ("header", "candidates"),
    [
        ("name,mean_score,rating", "mean_score, rating"),
        ("photo,picture,MOS", "photo, picture"),
        ("Image-Name,image name,MOS", "Image-Name, image name"),
    ],
)
def test_similar_columns_are_refused_with_candidates(tmp_path: Path, header: str, candidates: str) -> None:
    with pytest.raises(DataError, match=candidates):
        read(written(tmp_path, f"{header}\na,4,5\n"))


def test_a_column_may_be_named_in_another_spelling(tmp_path: Path) -> None:
    config = DataConfig.model_validate({"scale": (0, 10), "columns": {"id": "photo_file", "score": "beauty"}})
    assert read(written(tmp_path, "Photo File,Beauty\na,4\nb,5\n"), config) == {"a": 4, "b": 5}


@pytest.mark.parametrize("header", ["Image_ID,Count 1,Count 2", "IMAGE ID,count1,count2", "Image-Id,COUNT-1,COUNT-2"])
def test_votes_are_recognised_in_another_spelling(tmp_path: Path, header: str) -> None:
    ratings = read_ratings(written(tmp_path, f"{header}\na,1,3\n"), DataConfig())
    assert (ratings.format, ratings.scale, ratings.scores.tolist()) == ("counts", (1, 2), [1.75])


def test_the_scale_is_not_guessed_from_another_spelling(tmp_path: Path) -> None:
    """`image,score` is TAD66K's, on 0…10; `Image,Score` may be anybody's."""
    with pytest.raises(DataError, match="scale"):
        read(written(tmp_path, "Image,Score\na,4\n"), DataConfig())


def test_a_comma_that_may_part_thousands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":2: MOS: '1,234' may be 1\.234 or 1234"):
        read(written(tmp_path, "name;MOS\na;1,234\nb;2,345\n"))
    with pytest.raises(DataError, match=r":3: MOS: '4,5' is not a number"):
        read(written(tmp_path, "name;MOS\na;4.5\nb;4,5\n"))


def test_a_list_of_images_below_an_unknown_header(tmp_path: Path) -> None:
    file = written(tmp_path, "listing\na.jpg\nb.PNG\n")
    assert read_unlabelled(file, DataConfig()).ids.tolist() == ["a.jpg", "b.PNG"]


ROWS = [{"name": "a", "MOS": 4}, {"name": "b", "MOS": 5.0}]


def parquet(file: Path) -> None:
    """A table in Parquet."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(arrow.Table.from_pylist(ROWS), file)


RECORDS: dict[str, Callable[[Path], object]] = {
    "ratings.parquet": parquet,
    "ratings.csv": parquet,
    "ratings.jsonl": lambda file: file.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS)),
    "ratings.json": lambda file: file.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "ratings.txt": lambda file: file.write_text(json.dumps(ROWS, indent=1)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_read_whatever_their_ending(tmp_path: Path, name: str) -> None:
    RECORDS[name](tmp_path / name)
    assert read(tmp_path / name) == {"a": 4, "b": 5}


def test_a_bad_line_of_json_lines_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\.jsonl:3: this line is not JSON"):
        read(written(tmp_path, '{"name": "a", "MOS": 4}\n\n{"name": \n', "ratings.jsonl"))
    with pytest.raises(DataError, match=r"\.jsonl:3: MOS: 'x' is not a number"):
        read(written(tmp_path, '{"name": "a", "MOS": 4}\n\n{"name": "b", "MOS": "x"}\n', "ratings.jsonl"))


def zipped(file: Path) -> None:
    """An archive of arrays."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("scores.npy", b"")


def database(file: Path) -> None:
    """A database with a table."""
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE ratings (name, MOS)")
    connection.commit()
    connection.close()


OTHER_KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "ratings.npz": (zipped, "NumPy"),
    "ratings.csv.zip": (zipped, "ZIP"),
    "ratings.csv.gz": (lambda file: file.write_bytes(gzip.compress(b"name,MOS\na,1\n")), "gzip"),
    "gzip.csv": (lambda file: file.write_bytes(gzip.compress(b"name,MOS\na,1\n")), "gzip"),
    "ratings.pkl": (lambda file: file.write_bytes(pickle.dumps(ROWS)), "pickle"),
    "pickle.csv": (lambda file: file.write_bytes(pickle.dumps(ROWS)), "pickle"),
    "ratings.sqlite": (database, "SQLite"),
    "ratings.mat": (lambda file: file.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200)), "MATLAB"),
    "ratings.h5": (lambda file: file.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200)), "HDF5"),
    "ratings.npy": (lambda file: np.save(file, np.ones(3)), "NumPy"),
    "ratings.csv": (lambda file: file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF"), "image"),
    "ratings.pdf": (lambda file: file.write_bytes(b"%PDF-1.7\n"), "PDF"),
    "page.csv": (lambda file: file.write_bytes(b"\n<!DOCTYPE html><html>404</html>"), "web page"),
    "lfs.csv": (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "LFS"),
    "broken.parquet": (lambda file: file.write_bytes(b"PAR1" + bytes(100)), "Parquet"),
    "folder.csv": (lambda file: file.mkdir(), "folder"),
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_another_kind_of_file_is_refused_by_its_kind(tmp_path: Path, name: str) -> None:
    write, kind = OTHER_KINDS[name]
    write(tmp_path / name)
    for reader in (read_ratings, read_unlabelled) if name != "folder.csv" else (read_ratings,):
        with pytest.raises(DataError) as error:
            reader(tmp_path / name, SCALE)
        assert error.value.message.startswith(f"{tmp_path / name}: ")
        assert kind in error.value.message


def excel(file: Path, *rows: list[object]) -> Path:
    """A workbook whose first sheet is empty."""
    book = openpyxl.Workbook()
    sheet = book.create_sheet("ratings")
    for row in rows:
        sheet.append(row)
    book.save(file)
    return file


def test_formulas_without_values_are_named(tmp_path: Path) -> None:
    header = ["name", "MOS", "note", None]
    scores = excel(tmp_path / "a.xlsx", header, ["a", 4, "=A2"], ["b", "=AVERAGE(C2:C9)", None])
    with pytest.raises(DataError, match=r"a\.xlsx:3: MOS: '=AVERAGE\(C2:C9\)' is a formula without a value: open"):
        read(scores)
    ids = excel(tmp_path / "b.xlsx", header, ["=C2", 4, "a"], ["=C3", 5, "b"])
    with pytest.raises(DataError, match=r"b\.xlsx:2: name: '=C2' is a formula without a value.*1 more row like it"):
        read(ids)
    unused = excel(tmp_path / "c.xlsx", header, ["a", 4, "=A2"], ["b", 5, "=A3"])
    assert read(unused) == {"a": 4, "b": 5}
