"""Each format of rating files in the wild, as a small file with a MOS computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openpyxl
import pytest

from elta_tune.config import DataConfig
from elta_tune.data.readers import Ratings, read_ratings, read_unlabelled
from elta_tune.data.readers.formats import FORMATS
from elta_tune.errors import EltaTuneError

ONE_TO_TEN = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
SCORE2 = ",".join(f"score{number}" for number in range(2, 12))
# 2·5 + 4·6 + 2·7 + 2·10 over 10 votes: 6.8. And 1·1 + 3·2 over 4 votes: 1.75.
VOTES = {"953619": [0, 0, 0, 0, 2, 4, 2, 0, 0, 2], "0042": [1, 3, 0, 0, 0, 0, 0, 0, 0, 0]}
AVA_MOS = [6.8, 1.75]


def joined(cells: list[Any], separator: str = ",") -> str:
    """A line."""
    return separator.join(map(str, cells))


def lines(*rows: str) -> bytes:
    """A text file."""
    return "".join(f"{row}\n" for row in rows).encode()


def votes_rows(
    before: Callable[[str], list[Any]], after: list[Any], separator: str = ",", shares: bool = False
) -> list[str]:
    """The rows of `VOTES` with other cells around them."""
    return [
        joined([*before(name), *([v / sum(votes) for v in votes] if shares else votes), *after], separator)
        for name, votes in VOTES.items()
    ]


def sheet(*rows: list[Any]) -> Callable[[Path], None]:
    """Writes an Excel file."""

    def write(file: Path) -> None:
        book = openpyxl.Workbook()
        assert book.active is not None
        for row in rows:
            book.active.append(row)
        book.save(file)

    return write


class Case(NamedTuple):
    """A file as it is found, and what has to be read from it."""

    file: str
    content: bytes | Callable[[Path], None]
    form: str
    ids: list[str]
    mos: list[float]
    scale: tuple[float, float]
    threshold: float
    bins: list[float] | None = None
    fields: dict[str, Any] = {}  # noqa: RUF012


def ava(file: str, content: bytes, form: str = "ava", **more: Any) -> Case:
    """A file of `VOTES`."""
    return Case(file, content, form, list(VOTES), AVA_MOS, (1, 10), 5, ONE_TO_TEN, **more)


# Softmax of these logits is (1, 2, 1, 0, …) / 4 but for e^-50: a MOS of 2.
LOGITS = [0, math.log(2), 0, *[-50] * 7]

CASES = {
    "AVA, counts": ava("train.csv", lines("image_id," + SCORE2, *votes_rows(lambda name: [name], []))),
    "AVA, shares": ava("val.csv", lines("image_id," + SCORE2, *votes_rows(lambda name: [name], [], shares=True))),
    "AVA, tags and score": ava(
        "train.csv",
        lines(f"image_id,{SCORE2},tag1,tag2,tag3,score", *votes_rows(lambda name: [name], [1, 22, "", 9.9])),
    ),
    "AVA, saved with its index": ava(
        "test.csv", lines(f",image_id,{SCORE2}", *votes_rows(lambda name: [VOTES[name][0], name], []))
    ),
    "AVA, original": ava(
        "AVA.txt", lines(*votes_rows(lambda name: [7, name], [1, 22, 1396], separator=" ")), form="ava_txt"
    ),
    "AVA, original, tabs": ava(
        "AVA.txt", lines(*votes_rows(lambda name: [7, name], [1, 22, 1396], separator="\t")), form="ava_txt"
    ),
    "AVA, idealo": ava(
        "ava_labels_train.json",
        json.dumps([{"image_id": name, "label": votes} for name, votes in VOTES.items()]).encode(),
        form="ava_idealo",
    ),
    "AVA, NIMA counts": ava("train_labels.csv", lines(*votes_rows(lambda name: [name], [])), form="ava_nima"),
    "AVA, NIMA shares": ava("val.csv", lines(*votes_rows(lambda name: [name], [], shares=True)), form="ava_nima"),
    "AVA, ELTA 2.0": ava(
        "ava.csv",
        lines(
            f"image_id,{SCORE2},tag1,tag2,tag3,score,split,category,scene_conf,is_generated",
            *votes_rows(lambda name: [name], [1, 2, 3, 9.9, "train", "animal", 0.83, False]),
        ),
    ),
    "ArtiMuse": Case(
        "test_ava.json",
        b'[{"image": "953980.jpg", "gt_score": 5.21}, {"image": "session144/iaa_pub10022_.jpg", "gt_score": 3}]',
        "artimuse",
        ["953980.jpg", "session144/iaa_pub10022_.jpg"],
        [5.21, 3.0],
        (1, 10),
        5.5,
        fields={"scale": [1, 10]},
    ),
    "TAD66K": Case(
        "train.csv",
        lines("image,score", "10005172493.jpg,4.3846", "8.jpg,0"),
        "tad66k",
        ["10005172493.jpg", "8.jpg"],
        [4.3846, 0],
        (0, 10),
        5,
    ),
    "PARA, official": Case(
        "PARA-GiaaTrain.csv",
        lines(
            "imageName,sessionId,semantic,"
            + ",".join(f"aestheticScore_{k / 2}" for k in range(2, 11))
            + ",aestheticScore_mean,qualityScore_mean",
            "iaa_pub1_.jpg,session1,animal,0,0,0,0,5,10,5,0,0,3.5,4.1",
            "iaa_pub1_.jpg,session2,plant,4,0,0,0,0,0,0,0,1,1.8,2",
        ),
        "para",
        ["session1/iaa_pub1_.jpg", "session2/iaa_pub1_.jpg"],
        [3.5, (4 * 1 + 5) / 5],
        (1, 5),
        3,
        [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5],
    ),
    "PARA, Prompt-DeT": Case(
        "PARA.csv",
        lines("ImageFile,Composition,Color,DoF,Light,Content,Score", "session1/a.jpg,3.1,3.2,3.3,3.4,3.5,3.6"),
        "para_prompt_det",
        ["session1/a.jpg"],
        [3.6],
        (1, 5),
        3,
    ),
    "AADB": Case(
        "imgListTrainRegression_score.txt",
        lines("farm1_255_19452343093_854dd8e8d2_b.jpg 0.45", "farm1_1.jpg  1.0"),
        "aadb",
        ["farm1_255_19452343093_854dd8e8d2_b.jpg", "farm1_1.jpg"],
        [0.45, 1.0],
        (0, 1),
        0.5,
    ),
    "AADB, tabs": Case(
        "list.txt", lines("a b.jpg\t0.45", "c.jpg\t1.0"), "aadb", ["a b.jpg", "c.jpg"], [0.45, 1.0], (0, 1), 0.5
    ),
    "KonIQ-10k, counts": Case(
        "koniq10k_scores_and_distributions.csv",
        lines(
            '"image_name","c1","c2","c3","c4","c5","c_total","MOS","SD","MOS_zscore"',
            '"10004473376.jpg",0,0,25,73,7,105,3.828571,0.527278,63.951275',
        ),
        "koniq10k_votes",
        ["10004473376.jpg"],
        [(3 * 25 + 4 * 73 + 5 * 7) / 105],
        (1, 5),
        3,
        [1, 2, 3, 4, 5],
    ),
    "KonIQ-10k, scores": Case(
        "koniq.csv",
        lines("image_name,width,MOS,SD,MOS_zscore", "10004473376.jpg,1024,3.83,0.53,63.9"),
        "koniq10k",
        ["10004473376.jpg"],
        [3.83],
        (1, 5),
        3,
    ),
    "SPAQ, Excel": Case(
        "MOS and Image attribute scores.xlsx",
        sheet(["Image name", "MOS", "Brightness"], ["00001.jpg", 36.75, 48], ["00002.jpg", 68, 70.5], [None] * 3),
        "spaq",
        ["00001.jpg", "00002.jpg"],
        [36.75, 68],
        (0, 100),
        50,
    ),
    "SPAQ, CSV": Case(
        "spaq.csv",
        lines("image_id,MOS,Brightness,Colorfulness", "00001.jpg,36.75,48,50"),
        "spaq",
        ["00001.jpg"],
        [36.75],
        (0, 100),
        50,
    ),
    "SPAQ, divided by ten": Case(
        "spaq.csv", lines("image_id,MOS,Brightness", "00001.jpg,3.675,4.8"), "spaq", ["00001.jpg"], [3.675], (0, 10), 5
    ),
    "EVA": Case(
        "votes.csv",
        lines(
            "image_id=user_id=score=difficulty=visual=composition=quality=semantic",
            "1=u1=7=2=3=3=3=3",
            "00002=u1=10=1=3=3=3=3",
            "1=u2=4=2=3=3=3=3",
            "1=u3=4=1=1=1=1=1",
            "00002=u3=0=1=1=1=1=1",
        ),
        "eva",
        ["1", "00002"],
        [(7 + 4 + 4) / 3, 5],
        (0, 10),
        5,
        [0, *ONE_TO_TEN],
    ),
    "ICAA17K": Case(
        "icaa.csv",
        lines("ID,color,MOS,probability", '17.jpg,"red, blue",6.2,"0.1,0.2"'),
        "icaa17k",
        ["17.jpg"],
        [6.2],
        (0, 10),
        5,
        fields={"scale": [0, 10]},
    ),
    "AGIQA-3K": Case(
        "data.csv",
        lines(
            "name,prompt,adj1,mos_quality,std_quality,mos_align,std_align",
            'attngan_1.jpg,"a cat, sleeping",sharp,2.5,0.4,3.1,0.2',
        ),
        "agiqa3k",
        ["attngan_1.jpg"],
        [2.5],
        (0, 5),
        2.5,
    ),
    "pyiqa": Case(
        "meta_info.csv",
        lines("name,mos,std,official_split", "a.jpg,71.5,9,0", "b.jpg,12,8,2"),
        "pyiqa",
        ["a.jpg", "b.jpg"],
        [71.5, 12],
        (0, 100),
        50,
        fields={"scale": [0, 100]},
    ),
    "vote counts": Case(
        "train.csv",
        lines("photo,count_1,count_2,count_3", "0017,1,0,3"),
        "counts",
        ["0017"],
        [2.5],
        (1, 3),
        2,
        [1, 2, 3],
    ),
    "plain CSV": Case(
        "own.csv",
        lines("name,camera,score", "a.png,Leica,3"),
        "plain",
        ["a.png"],
        [3],
        (1, 7),
        4,
        fields={"scale": [1, 7]},
    ),
    "plain TSV, columns named": Case(
        "own.tsv",
        lines("photo\tlikes\tscore", "my cat, asleep.png\t40\t7"),
        "plain",
        ["my cat, asleep.png"],
        [40],
        (0, 50),
        25,
        fields={"scale": [0, 50], "columns": {"id": "photo", "score": "likes"}},
    ),
    "plain, semicolons": Case(
        "own.csv", lines("name;MOS", "a.png;3"), "plain", ["a.png"], [3], (1, 5), 3, fields={"scale": [1, 5]}
    ),
    "plain, no header": Case(
        "own.csv",
        lines("a.png,3.5", "b.png,1"),
        "plain",
        ["a.png", "b.png"],
        [3.5, 1],
        (1, 5),
        3,
        fields={"scale": [1, 5], "columns": {"id": "1", "score": "2"}},
    ),
    "released predictions": Case(
        "test_result.csv",
        lines(f"image_id,gt,score,{SCORE2}", "17,6.1,1.75," + joined([0.25, 0.75, *[0] * 8])),
        "predictions",
        ["17"],
        [1.75],
        (1, 10),
        5,
        ONE_TO_TEN,
    ),
    "released logits": Case(
        "logits.csv",
        lines(f"image_id,gt,score,{SCORE2}", "17,6.1,2.0," + joined(LOGITS)),
        "predictions",
        ["17"],
        [2.0],
        (1, 10),
        5,
        ONE_TO_TEN,
    ),
    "released predictions, the truth": Case(
        "test_result.csv",
        lines(f"image_id,gt,score,{SCORE2}", "17,6.1,1.75," + joined([0.25, 0.75, *[0] * 8])),
        "predictions",
        ["17"],
        [6.1],
        (1, 10),
        5,
        fields={"columns": {"score": "gt"}, "scale": [1, 10]},
    ),
}


def read(case: Case, folder: Path, **fields: Any) -> Ratings:
    """Writes a case and reads it."""
    file = folder / case.file
    case.content(file) if callable(case.content) else file.write_bytes(case.content)
    return read_ratings(file, DataConfig.model_validate({**case.fields, **fields}))


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_as_it_is_found(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    ratings = read(case, tmp_path)
    assert ratings.format == case.form
    assert ratings.ids.tolist() == case.ids
    np.testing.assert_allclose(ratings.scores, case.mos, rtol=1e-9)
    assert ratings.scale == case.scale
    assert ratings.threshold == case.threshold
    if case.bins is None:
        assert ratings.bins is None
        assert ratings.distributions is None
    else:
        assert ratings.bins is not None
        assert ratings.distributions is not None
        assert ratings.bins.tolist() == case.bins
        np.testing.assert_allclose(ratings.distributions.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(ratings.distributions @ ratings.bins, case.mos, rtol=1e-5)


def test_every_form_has_a_case() -> None:
    assert {case.form for case in CASES.values()} == {*FORMATS, "plain"}


@pytest.mark.parametrize("name", CASES)
def test_a_form_may_also_be_named_and_no_other_fits(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    again = read(case, tmp_path, format=case.form)
    np.testing.assert_allclose(again.scores, case.mos, rtol=1e-9)
    for other in {"ava_txt", "ava_idealo", "para", "eva", "counts"} - {case.form}:
        with pytest.raises(EltaTuneError, match=r"data\.format"):
            read(case, tmp_path, format=other)


@pytest.mark.parametrize("name", [name for name in CASES if "plain" not in name])
def test_the_same_file_may_list_a_pool(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    read(case, tmp_path)
    if case.form == "eva":
        return  # a row for each vote is not a list
    pool = read_unlabelled(tmp_path / case.file, DataConfig())
    assert pool.ids.tolist() == case.ids
    assert not isinstance(pool, Ratings)


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (lines("image_id", "0001.jpg", "2"), ["0001.jpg", "2"]),
        (lines("Image name", "0001.jpg", "2"), ["0001.jpg", "2"]),
        (lines("0001.jpg", "a b.png"), ["0001.jpg", "a b.png"]),
        (lines("953619", "0042"), ["953619", "0042"]),
    ],
    ids=["a header", "a header of two words", "file names alone", "numbers alone"],
)
def test_a_pool_is_a_list_with_or_without_a_header(tmp_path: Path, content: bytes, ids: list[str]) -> None:
    file = tmp_path / "pool.csv"
    file.write_bytes(content)
    assert read_unlabelled(file, DataConfig()).ids.tolist() == ids


AMBIGUOUS = {
    "two scores": (lines("name,MOS,score", "a,1,2"), ["MOS, score", "data.columns.score"]),
    "two ids": (lines("name,file,score", "a,b,2"), ["name, file", "data.columns.id"]),
    "two forms": (
        lines(f"image_id,count_1,count_2,{SCORE2}", "a," + joined([1] * 12)),
        ["ava or counts", "data.columns", "data.format"],
    ),
    "two splits": (lines("name,MOS,set,split", "a,1,train,val"), ["set, split", "data.columns.split"]),
    "no scores": (lines("name,beauty", "a,2"), ["name, beauty", "data.columns.score"]),
    "ratings as a header": (
        lines("photo," + joined(ONE_TO_TEN), "a," + joined([3] * 10)),
        ["photo, 1, 2", "data.format"],
    ),
    "no header": (lines("a.jpg,2", "b.jpg,3"), ["1, 2", "data.columns.id"]),
    "no header, an index": (lines("0,a.jpg,2", "1,b.jpg,3"), ["1, 2, 3", "data.columns.id"]),
    "a header that is a number": (
        lines("0,place", "a.jpg,Rome", "b.jpg,Oslo"),
        ["columns are 0, place", "data.columns.id"],
    ),
    "eleven bins": (lines(f"image_id,{SCORE2},score12", "a," + joined([1] * 11)), ["score11, score12", "data.columns"]),
    "a bin more before": (lines(f"image_id,score1,{SCORE2}", "a," + joined([1] * 11)), ["score1, score2", "data.col"]),
    "predictions of eleven bins": (
        lines(f"image_id,gt,score,{SCORE2},score12", "a,1,1," + joined([1] * 11)),
        ["gt, score", "data.columns.score"],
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_names_are_refused_with_candidates(tmp_path: Path, name: str) -> None:
    content, parts = AMBIGUOUS[name]
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(EltaTuneError) as error:
        read_ratings(tmp_path / "train.csv", DataConfig(scale=(1, 5)))
    message = f"{error.value.message} {error.value.hint}"
    assert all(part in message for part in [str(tmp_path / "train.csv"), *parts]), message


REFUSED = {
    "AADB": (lines("a.jpg 0.4", "b.jpg 1.01"), "list.txt", 2, "score: '1.01' is outside the scale 0…1"),
    "TAD66K": (
        lines("image,score", "a.jpg,4", "b.jpg,-0.1"),
        "train.csv",
        3,
        "score: '-0.1' is outside the scale 0…10",
    ),
    "SPAQ": (
        sheet(["Image name", "MOS", "Brightness"], ["a", 3, 4], [None, None, None], ["b", 101, 5]),
        "spaq.xlsx",
        4,
        "MOS: '101' is outside the scale 0…100",
    ),
    "SPAQ, empty cell": (
        sheet(["Image name", "MOS", "Brightness"], ["a", 3, 4], ["b", None, 5]),
        "spaq.xlsx",
        3,
        "MOS: is empty",
    ),
    "EVA": (
        lines("image_id=user_id=score", "1=a=5", "1=b=11"),
        "votes.csv",
        3,
        "score: '11' is none of the ratings 0…10",
    ),
    "EVA, half a point": (lines("image_id=user_id=score", "1=a=5.5"), "votes.csv", 2, "score: '5.5' is none of"),
    "idealo": (
        b'[{"image_id": "1", "label": [1,0,0,0,0,0,0,0,0,0]},\n\n {"image_id": "2",\n  "label": [1, 2]}]',
        "ava.json",
        3,
        "label: '[1, 2]' is not a list of 10 numbers of votes",
    ),
    "idealo, no votes": (
        b'[\n{"image_id": "1", "label": [0,0,0,0,0,0,0,0,0,0]}]',
        "ava.json",
        2,
        "label: '[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]' is not a list",
    ),
    "ArtiMuse": (
        b'[\n {"image": "a{.jpg", "gt_score": 5},\n {"image": "b.jpg", "gt_score": "high"}\n]',
        "test.json",
        3,
        "gt_score: 'high' is not a number",
    ),
    "ArtiMuse, null": (
        b'[\n {"image": "a.jpg", "gt_score": 5},\n {"image": "b.jpg", "gt_score": null}\n]',
        "test.json",
        3,
        "gt_score: is empty",
    ),
    "ArtiMuse, NaN": (
        b'[\n {"image": "a.jpg", "gt_score": NaN},\n {"image": "b.jpg", "gt_score": 2.5}\n]',
        "test.json",
        2,
        "gt_score: is empty",
    ),
    "ArtiMuse, no id": (b'[\n {"image": null, "gt_score": 5}]', "test.json", 2, "image: no image id"),
    "AVA, original": (lines(joined([1, 17, *range(10), 1, 1, 1], " "), "", "2 18 5"), "AVA.txt", 3, "score3: is empty"),
    "PARA": (
        lines(
            "imageName,sessionId," + ",".join(f"aestheticScore_{k / 2}" for k in range(2, 11)),
            "a,s1," + joined([1] * 9),
            "a,s1," + joined([1] * 9),
        ),
        "para.csv",
        3,
        "sessionId/imageName: 's1/a' is a duplicate of line 2",
    ),
    "a long row": (lines("image,score", "a.jpg,4", "b,c.jpg,5"), "train.csv", 3, "3 cells in a table of 2 columns"),
    "a split": (
        lines("name,mos,official_split", "a,4,train", "b,4,holdout"),
        "meta.csv",
        3,
        "official_split: 'holdout' is not a split (train, val, test)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_row_of_any_form_is_named_by_its_line(tmp_path: Path, name: str) -> None:
    content, file, line, rule = REFUSED[name]
    path = tmp_path / file
    content(path) if callable(content) else path.write_bytes(content)
    with pytest.raises(EltaTuneError) as error:
        read_ratings(path, DataConfig(scale=(0, 5) if path.suffix == ".json" or "mos" in str(content) else None))
    assert error.value.message.startswith(f"{path}:{line}: {rule}")


@pytest.mark.parametrize(
    ("content", "file", "expected"),
    [
        (b"[1, 2]", "a.json", "list of objects"),
        (b'[{"image": 1},\n oops]', "a.json", "a.json:2: not JSON"),
        (b'{"image": "a"}', "a.json", "list of objects"),
        (b"PK nothing", "a.xlsx", "Excel"),
        (sheet(), "a.xlsx", "is empty"),
        (lines("name,score,name", "a,1,b"), "a.csv", "name: two columns"),
    ],
)
def test_file_that_is_not_a_table_is_refused(tmp_path: Path, content: Any, file: str, expected: str) -> None:
    content(tmp_path / file) if callable(content) else (tmp_path / file).write_bytes(content)
    with pytest.raises(EltaTuneError) as error:
        read_ratings(tmp_path / file, DataConfig())
    assert str(tmp_path / file) in error.value.message
    assert expected in error.value.message


@pytest.mark.parametrize("name", ["ArtiMuse", "ICAA17K", "pyiqa", "plain CSV"])
def test_scale_that_the_format_lacks_must_be_stated(tmp_path: Path, name: str) -> None:
    with pytest.raises(EltaTuneError) as error:
        read(CASES[name], tmp_path, scale=None)
    assert "the rating scale is unknown" in error.value.message
    assert "`data.scale=[" in str(error.value.hint)


def test_stated_scale_wins_but_must_contain_the_ratings(tmp_path: Path) -> None:
    assert read(CASES["TAD66K"], tmp_path, scale=[0, 20]).threshold == 10
    assert read(CASES["TAD66K"], tmp_path, scale=[0, 20], threshold=4).threshold == 4
    with pytest.raises(EltaTuneError, match=r"data\.scale: 1…5 does not contain its ratings 1…10"):
        read(CASES["AVA, counts"], tmp_path, scale=[1, 5])


def test_another_column_may_be_the_score_of_a_known_form(tmp_path: Path) -> None:
    ratings = read(CASES["PARA, official"], tmp_path, columns={"score": "qualityScore_mean"}, scale=[1, 5])
    assert ratings.ids.tolist() == ["session1/iaa_pub1_.jpg", "session2/iaa_pub1_.jpg"]
    assert ratings.scores.tolist() == [4.1, 2]
    assert ratings.distributions is None
