"""Rating files of any common form are read; errors name file, line, column and rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elta_tune.config import DataConfig
from elta_tune.data.readers import Ratings, read_ratings, read_unlabelled
from elta_tune.errors import DataError, EltaTuneError

AVA = "image_id," + ",".join(f"score{k}" for k in range(2, 12))
COUNTS = "image_id,count_1,count_2,count_3"


def written(tmp_path: Path, *lines: str, name: str = "ratings.csv", encoding: str = "utf-8") -> Path:
    """A file of these lines."""
    file = tmp_path / name
    file.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return file


def refusal(file: Path, **fields: object) -> EltaTuneError:
    """Why a file is refused."""
    with pytest.raises(EltaTuneError) as error:
        read_ratings(file, DataConfig.model_validate(fields))
    return error.value


def test_ava_score2_counts_the_ratings_of_one(tmp_path: Path) -> None:
    file = written(tmp_path, AVA, "953417,0,0,0,5,32,50,23,10,3,1", "0007,1,0,0,0,0,0,0,0,0,3")
    ratings = read_ratings(file, DataConfig())
    assert ratings.ids.tolist() == ["953417", "0007"]
    mos = (4 * 5 + 5 * 32 + 6 * 50 + 7 * 23 + 8 * 10 + 9 * 3 + 10 * 1) / 124
    np.testing.assert_allclose(ratings.scores, [mos, (1 + 30) / 4])
    np.testing.assert_allclose(ratings.distributions[0], np.array([0, 0, 0, 5, 32, 50, 23, 10, 3, 1]) / 124, rtol=1e-6)
    assert ratings.bins.tolist() == list(range(1, 11))
    assert ratings.scale == (1.0, 10.0)
    assert ratings.threshold == 5.0


def test_ava_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    header = "tag1,score11," + ",".join(f"score{k}" for k in range(2, 11)) + ",score,image_id"
    ratings = read_ratings(written(tmp_path, header, "9,1,1,0,0,0,0,0,0,0,0,99,a.jpg"), DataConfig())
    assert ratings.ids.tolist() == ["a.jpg"]
    assert ratings.scores.tolist() == [5.5]


@pytest.mark.parametrize("bins", [2, 3, 9, 10, 13])
def test_vote_counts_of_any_number_of_bins(tmp_path: Path, bins: int) -> None:
    header = ",".join(["image_id", *(f"count_{k}" for k in range(1, bins + 1))])
    ratings = read_ratings(written(tmp_path, header, "a," + ",".join(map(str, range(bins)))), DataConfig())
    # Rating k has k − 1 votes.
    mos = sum(k * (k - 1) for k in range(1, bins + 1)) / sum(range(bins))
    assert ratings.scores.tolist() == pytest.approx([mos])
    assert ratings.bins.tolist() == list(range(1, bins + 1))
    assert ratings.scale == (1, bins)
    assert ratings.threshold == (1 + bins) / 2


def test_counts_and_probabilities_are_the_same_distribution(tmp_path: Path) -> None:
    counts = read_ratings(written(tmp_path, COUNTS, "a,1,4,5"), DataConfig())
    shares = read_ratings(written(tmp_path, COUNTS, "a,.1,0.4,5e-1"), DataConfig())
    assert counts.scores == pytest.approx(shares.scores)
    np.testing.assert_allclose(counts.distributions, shares.distributions)
    np.testing.assert_allclose(counts.distributions, [[0.1, 0.4, 0.5]], rtol=1e-6)
    assert counts.distributions.dtype == np.float32


def test_scale_and_threshold_can_be_set(tmp_path: Path) -> None:
    file = written(tmp_path, COUNTS, "a,1,4,5")
    ratings = read_ratings(file, DataConfig(threshold=2.5))
    assert (ratings.scale, ratings.threshold) == ((1, 3), 2.5)


def test_ids_are_text(tmp_path: Path) -> None:
    ids = ["00001", "1", "1.0", "1e3", "NA", "nan", "null", "true", "été.jpg", "a, b", 'say "hi"', "inf", " padded "]
    cells = ['"' + name.replace('"', '""') + '"' for name in ids]
    ratings = read_ratings(written(tmp_path, COUNTS, *(f"{cell},1,1,1" for cell in cells)), DataConfig())
    assert ratings.ids.tolist() == [*ids[:-1], "padded"]
    assert all(type(name) is str for name in ratings.ids)


@pytest.mark.parametrize("name", ["image_id", "image", "image_name", "Image name", "imageName", "ID", "Image", "file"])
def test_the_id_column_has_many_names(tmp_path: Path, name: str) -> None:
    ratings = read_ratings(written(tmp_path, f"{name},count_1,count_2", "x,1,1"), DataConfig())
    assert ratings.ids.tolist() == ["x"]


def test_the_id_column_may_be_named(tmp_path: Path) -> None:
    file = written(tmp_path, "image_id,photo,count_1,count_2", "7,x,1,1")
    ratings = read_ratings(file, DataConfig.model_validate({"columns": {"id": "photo"}}))
    assert ratings.ids.tolist() == ["x"]
    error = refusal(file, columns={"id": "phto"})
    assert "data.columns.id" in error.message
    assert "'photo'" in error.message


@pytest.mark.parametrize("columns", [{"id": 2, "score": 3}, {"id": "2", "score": "3"}])
def test_columns_without_a_header_are_named_by_their_numbers(tmp_path: Path, columns: dict[str, object]) -> None:
    (tmp_path / "train.csv").write_text("0,a.jpg,2.5\n1,b.jpg,4\n")
    ratings = read_ratings(tmp_path / "train.csv", DataConfig.model_validate({"scale": [1, 5], "columns": columns}))
    assert ratings.ids.tolist() == ["a.jpg", "b.jpg"]
    assert ratings.scores.tolist() == [2.5, 4]


def test_column_given_by_number_implies_no_header(tmp_path: Path) -> None:
    (tmp_path / "pool.csv").write_text("1\n2\n3\n")
    config = DataConfig.model_validate({"columns": {"id": 1}})
    assert read_unlabelled(tmp_path / "pool.csv", config).ids.tolist() == ["1", "2", "3"]


@pytest.mark.parametrize("counts", ["count_0,count_1,count_2", "count_1,count_3,count_4"])
def test_counts_that_are_not_taken_may_be_called_as_they_like(tmp_path: Path, counts: str) -> None:
    (tmp_path / "train.csv").write_text(f"image_id,score,{counts}\na,2,1,0,0\nb,3,0,1,0\n")
    config = DataConfig.model_validate({"scale": [1, 5], "columns": {"score": "score"}})
    scores = read_ratings(tmp_path / "train.csv", config).scores
    assert scores is not None
    assert scores.tolist() == [2, 3]
    assert read_unlabelled(tmp_path / "train.csv", config).ids.tolist() == ["a", "b"]


def test_byte_order_mark_crlf_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "ratings.csv"
    file.write_bytes(b"\xef\xbb\xbf" + f"{COUNTS}\r\n1,1,1,0\r\n\r\n2,1,0,1\r\n\r\n".encode())
    ratings = read_ratings(file, DataConfig())
    assert ratings.ids.tolist() == ["1", "2"]
    assert ratings.scores.tolist() == [1.5, 2.0]


BAD_ROWS = {
    "a word": ("x,1,two,3", "count_2", "'two' is not a number"),
    "nothing": ("x,1,,3", "count_2", "is empty"),
    "not a number": ("x,1,nan,3", "count_2", "'nan' is not a number"),
    "infinity": ("x,1,inf,3", "count_2", "'inf' is not a number"),
    "below zero": ("x,1,-2,3", "count_2", "'-2' is below 0"),
    "no votes": ("x,0,0,0", "count_1", "no votes"),
    "no id": (",1,2,3", "image_id", "no image id"),
    "an id of spaces": ("  ,1,2,3", "image_id", "no image id"),
    "a repeated id": ("a,1,2,3", "image_id", "'a' is a duplicate of line 2"),
    "too few cells": ("x,1,2", "count_3", "is empty"),
}


@pytest.mark.parametrize("bad", BAD_ROWS)
@pytest.mark.parametrize(
    ("before", "line"),
    [
        (["a,1,2,3"], 3),
        (["a,1,2,3", "b,1,2,3", "c,1,2,3"], 5),
        (["a,1,2,3", '"two\nlines",1,2,3', '"\n\nfour\n",3,2,1'], 9),
        (["a,1,2,3", "", "   ", "b,1,2,3"], 6),
    ],
    ids=["second", "fourth", "after quoted newlines", "after blank lines"],
)
def test_a_bad_row_is_named_by_file_line_column_and_rule(
    tmp_path: Path, bad: str, before: list[str], line: int
) -> None:
    row, column, rule = BAD_ROWS[bad]
    file = written(tmp_path, COUNTS, *before, row, "last,1,1,1")
    assert refusal(file).message.startswith(f"{file}:{line}: {column}: {rule}")


def test_further_bad_rows_are_counted(tmp_path: Path) -> None:
    file = written(tmp_path, COUNTS, "a,1,2,3", "b,x,2,3", "c,1,2,3", "d,y,2,3", "e,z,2,3")
    message = refusal(file).message
    assert message.startswith(f"{file}:3: count_1: 'x' is not a number")
    assert "2 more rows" in message


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (COUNTS.encode() + b"\n", "no rows"),
        (b"\xff\xfe\x00\x01,\x00\n" * 3, "can't be read"),
        (COUNTS.encode() + b"\na,1,2,3,4,5\n", "cells"),
        (b"image_id,beauty,charm\na,1,2\n", "beauty, charm"),
        (b"image_id,count_1,count_3\na,1,2\n", "count_2"),
        (b"image_id,count_0,count_1,count_2\na,1,2,3\n", "there is no column count_3, but count_0 is there"),
        (b"image_id,count_01,count_02\na,1,2\n", "there is no column count_1, but count_02 is there"),
        (b"image_id,image,count_1,count_2\na,b,1,2\n", "image_id, image"),
    ],
    ids=[
        *("empty", "header alone", "binary", "longer rows", "unknown columns", "a gap in the counts"),
        *("counts from 0", "padded counts", "two ids"),
    ],
)
def test_file_that_is_not_a_rating_table_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    file = tmp_path / "ratings.csv"
    file.write_bytes(content)
    message = refusal(file).message
    assert str(file) in message
    assert named in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "train.csv").message == f"{tmp_path / 'train.csv'}: no such file"


def test_an_unknown_format_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, COUNTS, "a,1,2,3"), format="count")
    assert "data.format" in error.message
    assert "'counts'" in error.message


def test_a_format_that_was_named_must_fit(tmp_path: Path) -> None:
    assert "data.format" in refusal(written(tmp_path, COUNTS, "a,1,2,3"), format="ava").message


def test_a_pools_ratings_are_not_looked_at(tmp_path: Path) -> None:
    file = written(tmp_path, COUNTS, "a,1,x,3", "b,,,", "c,-1,0,0")
    pool = read_unlabelled(file, DataConfig())
    assert pool.ids.tolist() == ["a", "b", "c"]
    assert not isinstance(pool, Ratings)


LONE = [["session1/iaa_pub1_", "session1/iaa_pub2_"], ["abc-1", "abc-2"], ["a.heic", "b.heic"], ["photo", "a"]]


@pytest.mark.parametrize("ids", LONE, ids=lambda ids: ids[0])
def test_a_list_without_a_header_loses_no_image(tmp_path: Path, ids: list[str]) -> None:
    assert read_unlabelled(written(tmp_path, *ids), DataConfig()).ids.tolist() == ids


@pytest.mark.parametrize("name", ["photo", "filename", "file_name", "img_name"])
def test_pool_may_have_a_single_column(tmp_path: Path, name: str) -> None:
    config = DataConfig.model_validate({"columns": {"id": "photo"}})
    assert read_unlabelled(written(tmp_path, name, "a", "b"), config).ids.tolist() == ["a", "b"]


@pytest.mark.parametrize("ids", [["1", "2", "3"], ["00000", "00001", "00002"], ["a", "b", "c"]], ids=" ".join)
@pytest.mark.parametrize("long", [1, 3], ids=["the first row", "all rows"])
def test_row_longer_than_the_header_is_refused_for_any_id(tmp_path: Path, ids: list[str], long: int) -> None:
    rows = [f"{name},30,20{',50' if number < long else ''}" for number, name in enumerate(ids)]
    file = written(tmp_path, "image,count_1,count_2", *rows)
    assert refusal(file).message.startswith(f"{file}:2: 4 cells in a table of 3 columns")
    with pytest.raises(EltaTuneError, match=":2: 4 cells"):
        read_unlabelled(file, DataConfig())


@pytest.mark.parametrize("number", ["{}", "{}.0"])
def test_numbers_name_splits_in_official_or_named_columns(tmp_path: Path, number: str) -> None:
    rows = [f"i{split},3,{number.format(split)}" for split in range(3)]
    official = written(tmp_path, "name,mos,official_split", *rows)
    assert read_ratings(official, DataConfig(scale=(1, 5))).splits.tolist() == ["train", "val", "test"]
    folds = written(tmp_path, "name,mos,split", *rows, name="folds.csv")
    assert "`data.columns.split=split`" in str(refusal(folds, scale=(1, 5)).hint)
    named = DataConfig.model_validate({"scale": (1, 5), "columns": {"split": "split"}})
    assert read_ratings(folds, named).splits.tolist() == ["train", "val", "test"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_encoding_is_recognised(tmp_path: Path, encoding: str) -> None:
    file = written(tmp_path, COUNTS, "été.jpg,1,2,1", encoding=encoding)
    assert read_ratings(file, DataConfig()).ids.tolist() == ["été.jpg"]


@pytest.mark.parametrize("rows", [1, 3000])
def test_another_encoding_is_refused_by_its_line(tmp_path: Path, rows: int) -> None:
    file = written(tmp_path, COUNTS, *(f"a{n},1,2,3" for n in range(rows)), "été.jpg,1,2,1", encoding="latin-1")
    error = refusal(file)
    assert error.message.startswith(f"{file}:{rows + 2}: can't be read")
    assert str(error.hint).startswith("save it as UTF-8")


@pytest.mark.parametrize("after", [0, 2, 20_000])
def test_a_quote_that_is_never_closed_is_named_by_its_line(tmp_path: Path, after: int) -> None:
    file = written(tmp_path, COUNTS, "a,1,2,3", '"b,1,2,3', *(f"c{number},1,2,3" for number in range(after)))
    message = refusal(file).message
    assert message.startswith(f"{file}:3: ")
    assert "quote" in message


def test_trailing_separator_is_not_a_column(tmp_path: Path) -> None:
    file = written(tmp_path, "photo,score,", "a,3,", "b,4,")
    assert read_ratings(file, DataConfig(scale=(1, 5))).ids.tolist() == ["a", "b"]
    bare = written(tmp_path, "a.jpg,0,0,0,0,9,0,0,0,0,0,", "b.jpg,0,0,0,0,0,9,0,0,0,0", name="nima.csv")
    assert read_ratings(bare, DataConfig()).scores.tolist() == [5, 6]
    kept = written(tmp_path, "camera,score,", "a,3,", "b,4,5", name="kept.csv")
    assert "no column of ids" in refusal(kept, scale=(1, 5)).message


def test_an_old_excel_sheet_and_deep_json_are_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    assert refusal(tmp_path / "a.xls").hint == "save it as .xlsx or CSV"
    (tmp_path / "a.json").write_text("[" * 200_000)
    assert "nested too deeply" in refusal(tmp_path / "a.json").message


@pytest.mark.parametrize("names", [["a.jpg", "a.jpg"], ["s1/a.jpg", "s2/a.jpg"]], ids=["names", "paths"])
def test_scores_of_para_are_found_by_session(tmp_path: Path, names: list[str]) -> None:
    file = written(tmp_path, "sessionId,imageName,aestheticScore_mean", f"s1,{names[0]},3", f"s2,{names[1]},4")
    assert read_ratings(file, DataConfig(scale=(1, 5))).ids.tolist() == ["s1/a.jpg", "s2/a.jpg"]
    assert read_unlabelled(file, DataConfig()).ids.tolist() == ["s1/a.jpg", "s2/a.jpg"]


@pytest.mark.parametrize("cell", ["[1]", "{}", "null", "true", '"a\\u0000b"'])
def test_an_id_that_is_none_is_refused_by_its_line(tmp_path: Path, cell: str) -> None:
    rows = ["[", '{"image": "a", "gt_score": 3},', f'{{"image": {cell}, "gt_score": 3}}', "]"]
    assert refusal(written(tmp_path, *rows, name="a.json"), scale=(1, 5)).message.startswith(f"{tmp_path}/a.json:3: im")


def test_a_nul_in_an_id_is_refused(tmp_path: Path) -> None:
    assert "NUL" in refusal(written(tmp_path, COUNTS, "a,1,2,3", "b\0c,1,2,3")).message


def test_pool_folder_is_read_without_system_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.png", ".thumb.jpg", ".trash/c.jpg", "__MACOSX/._a.jpg", "deep/._b.png", "notes.txt"):
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pool" / name).write_bytes(b"")
    assert read_unlabelled(tmp_path / "pool", DataConfig()).ids.tolist() == ["a.jpg", "deep/b.png"]


def test_a_header_of_words_with_spaces_between(tmp_path: Path) -> None:
    file = written(tmp_path, "name score", "a.jpg 0.5", "b.jpg 0.25", name="list.txt")
    ratings = read_ratings(file, DataConfig(scale=(0, 1)))
    assert (ratings.ids.tolist(), ratings.scores.tolist()) == (["a.jpg", "b.jpg"], [0.5, 0.25])


def test_the_real_ava_has_its_mean(shared: Path) -> None:
    ratings = read_ratings(shared / "data" / "ava" / "ava_labels.csv", DataConfig())
    assert len(ratings.ids) == 255_502
    assert ratings.scores.mean() == pytest.approx(5.383, abs=5e-4)
    assert ratings.scores.std() == pytest.approx(0.731, abs=5e-4)


def test_real_votes_of_five_bins_and_their_pool(shared: Path) -> None:
    folder = shared / "data" / "sopho"
    ratings = read_ratings(folder / "train.csv", DataConfig())
    assert ratings.ids[0] == "0606.jpg"
    assert ratings.scores[0] == pytest.approx((2 * 1 + 3 * 9 + 4 * 8 + 5 * 3) / 21)
    assert len(ratings.ids) == 640
    assert len(read_unlabelled(folder / "pool.csv", DataConfig()).ids) == 103


UNLABELLED = {
    "plain.csv": "name,MOS\na,4\nb,\nc,nan\nd,5\n",
    "counts.csv": "name,count_1,count_2\na,1,2\nb,,\nc,0,0\nd,2,1\n",
    "list.json": '[{"image": "a", "gt_score": 4},\n{"image": "b", "gt_score": null},\n{"image": "c"},\n'
    '{"image": "d", "gt_score": 5}]',
}


@pytest.mark.parametrize("name", UNLABELLED)
def test_rows_without_a_rating_are_refused_or_skipped(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, *UNLABELLED[name].splitlines(), name=name)
    scale = {} if name == "counts.csv" else {"scale": (1, 5)}
    error = refusal(file, **scale)
    assert error.message.startswith(f"{file}:{2 if name == 'list.json' else 3}: ")
    assert "`data.on_unlabelled=skip`" in str(error.hint)
    ratings = read_ratings(file, DataConfig(on_unlabelled="skip", **scale))
    assert ratings.ids.tolist() == ["a", "d"]
    assert sorted(ratings.unlabelled) == ["b", "c"]


def test_a_row_that_lacks_only_some_votes_is_wrong(tmp_path: Path) -> None:
    file = written(tmp_path, COUNTS, "a,1,,3", "b,1,2,3")
    assert refusal(file, on_unlabelled="skip").message == f"{file}:2: count_2: is empty"


def test_a_file_without_any_rating_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "name,MOS", "a,", "b,")
    assert "is empty (and 1 more row like it)" in refusal(file, scale=(1, 5), on_unlabelled="skip").message


def test_all_wrong_rows_are_collected(tmp_path: Path) -> None:
    file = written(
        tmp_path, "name,MOS,split", "a,4,train", ",4,val", "c,x,val", "d,9,val", "a,3,test", "f,3,trial", "g,,val"
    )
    problems: list[DataError] = []
    ratings = read_ratings(file, DataConfig(scale=(1, 5)), problems)
    assert ratings.ids.tolist() == ["a"]
    assert sorted(int(problem.message.split(":")[1]) for problem in problems) == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("column", ["dmos", "DMOS", "D-MOS", "mean_dmos"])
def test_a_dmos_without_a_direction_has_a_note(tmp_path: Path, column: str) -> None:
    file = written(tmp_path, f"name,{column}", "a,4", "b,2")
    fields = {"scale": (1, 5), "columns": {"score": column}}
    assert "`data.higher_is_better=false`" in str(read_ratings(file, DataConfig.model_validate(fields)).notes)
    for direction in (True, False):
        ratings = read_ratings(file, DataConfig.model_validate({**fields, "higher_is_better": direction}))
        assert (ratings.notes, ratings.higher_is_better) == ((), direction)
