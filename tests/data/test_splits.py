"""Splits come from files, from a column of one file, or are held out with the same distribution of scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp

from elta_tune.config import DataConfig
from elta_tune.data.readers import Ratings, read_ratings
from elta_tune.data.splits import SPLITS, LabelledName, ignored_split_files, read_splits
from elta_tune.errors import DataError


def written(file: Path, rows: list[str], header: str = "name,mos") -> Path:
    """A rating file."""
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def config(root: Path, **fields: object) -> DataConfig:
    """A data section on a scale of 0…100."""
    return DataConfig.model_validate({"root": root, "scale": [0, 100], **fields})


def scored(root: Path, count: int, *, shuffled: int | None = None) -> Path:
    """A rating file of long-tailed scores, many of them equal."""
    scores = np.random.default_rng(0).standard_t(4, count).round(1).clip(-5, 5) * 10 + 50
    rows = [f"image{number},{score:g}" for number, score in enumerate(scores)]
    if shuffled is not None:
        np.random.default_rng(shuffled).shuffle(rows)
    return written(root / "all.csv", rows)


def read_labelled(config: DataConfig, names: Collection[str] = SPLITS) -> Mapping[LabelledName, Ratings]:
    """The splits that have labels."""
    return read_splits(config, names).labelled


def ids(splits: Mapping[LabelledName, Ratings]) -> dict[str, set[str]]:
    """The ids of each split."""
    return {name: set(ratings.ids) for name, ratings in splits.items()}


OFFICIAL = "name,mos,std,official_split"


@pytest.mark.parametrize("words", [("train", "val", "test"), ("0", "1", "2"), ("Training", "validation", "TEST")])
def test_column_defines_the_splits_of_one_file(tmp_path: Path, words: tuple[str, str, str]) -> None:
    rows = [f"a{number},{number},1,{words[place]}" for number, place in enumerate([0, 2, 0, 1, 0, 2])]
    file = written(tmp_path / "meta.csv", rows, OFFICIAL)
    splits = read_labelled(config(tmp_path, ratings=file.name))
    assert {name: ratings.ids.tolist() for name, ratings in splits.items()} == {
        "train": ["a0", "a2", "a4"],
        "val": ["a3"],
        "test": ["a1", "a5"],
    }
    assert splits["test"].scores.tolist() == [1, 5]
    assert splits["val"].origin == "meta.csv, its val rows"
    assert ids(read_labelled(config(tmp_path, train="meta.csv", val="meta.csv", test="meta.csv"))) == ids(splits)


def test_file_of_one_split_may_have_a_split_column(tmp_path: Path) -> None:
    for name in ("train", "val"):
        written(tmp_path / f"{name}.csv", [f"{name}{k},{k},1,{name}" for k in range(3)], OFFICIAL)
    assert ids(read_labelled(config(tmp_path)))["val"] == {"val0", "val1", "val2"}


def test_rows_marked_as_another_split_are_not_trained_on(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", ["a,1,1,train", "b,2,1,test"], OFFICIAL)
    written(tmp_path / "val.csv", ["c,1", "d,2"])
    assert ids(read_labelled(config(tmp_path))) == {"train": {"a"}, "val": {"c", "d"}}
    everything = read_labelled(config(tmp_path, columns={"split": "none"}))
    assert ids(everything)["train"] == {"a", "b"}


def test_split_without_rows_is_refused_with_existing_ones(tmp_path: Path) -> None:
    written(tmp_path / "meta.csv", ["a,1,1,train", "b,2,1,test", "c,2,1,test"], OFFICIAL)
    with pytest.raises(DataError, match=r"no row of its column of splits is val \(there are 2 test, 1 train\)"):
        read_labelled(config(tmp_path, ratings="meta.csv"))


def test_a_file_without_validation_rows_may_have_them_held_out(tmp_path: Path) -> None:
    rows = [f"a{k},{k},1,{'test' if k % 5 == 0 else 'train'}" for k in range(50)]
    written(tmp_path / "meta.csv", rows, OFFICIAL)
    splits = read_labelled(config(tmp_path, ratings="meta.csv", split={"val": 0.2, "test": 0}))
    assert {name: len(ratings.ids) for name, ratings in splits.items()} == {"train": 32, "val": 8, "test": 10}
    assert ids(splits)["test"] == {f"a{k}" for k in range(0, 50, 5)}


def test_one_file_without_a_split_column_needs_shares(tmp_path: Path) -> None:
    scored(tmp_path, 20)
    with pytest.raises(DataError, match=r"data\.val: this is the training file") as error:
        read_labelled(config(tmp_path, ratings="all.csv"))
    assert "data.split.val" in str(error.value.hint)
    with pytest.raises(DataError, match=r"data\.val: this is the training file"):
        read_labelled(config(tmp_path, train="all.csv", val="all.csv"))


def test_missing_validation_file_names_the_alternative(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.csv: no such file") as error:
        read_labelled(config(tmp_path))
    assert "`data.root=FOLDER`" in str(error.value.hint)
    written(tmp_path / "train.csv", ["a,1"])
    with pytest.raises(DataError, match=r"val\.csv: no such file") as error:
        read_labelled(config(tmp_path))
    assert "data.split.val" in str(error.value.hint)


@pytest.mark.parametrize("count", [40, 3000])
def test_held_out_parts_have_their_share_and_no_duplicates(tmp_path: Path, count: int) -> None:
    scored(tmp_path, count)
    splits = read_labelled(config(tmp_path, train="all.csv", split={"val": 0.1, "test": 0.05}))
    assert {name: len(ratings.ids) for name, ratings in splits.items()} == {
        "train": count * 0.85,
        "val": count * 0.1,
        "test": count * 0.05,
    }
    parts = ids(splits)
    assert set.union(*parts.values()) == {f"image{k}" for k in range(count)}
    assert splits["train"].origin == "all.csv, less 0.15 held out by data.split (seed 0)"
    assert splits["val"].origin == "all.csv, 0.1 held out by data.split (seed 0)"
    whole = dict(
        zip(*[read_ratings(tmp_path / "all.csv", config(tmp_path)).__dict__[k] for k in ("ids", "scores")], strict=True)
    )
    assert all(
        whole[name] == score for part in splits.values() for name, score in zip(part.ids, part.scores, strict=True)
    )


def test_the_tails_are_in_each_part(tmp_path: Path) -> None:
    scored(tmp_path, 3000)
    splits = read_labelled(config(tmp_path, train="all.csv", split={"val": 0.1, "test": 0.1}))
    train = splits["train"].scores
    low, high = np.quantile(train, [0.02, 0.98])
    for name in ("val", "test"):
        scores = splits[name].scores
        # A part of 300 at random would be off by .08 half of the time; a stratified one never is.
        assert ks_2samp(scores, train).statistic < 0.02
        assert 3 <= (scores < low).sum() <= 9
        assert 3 <= (scores > high).sum() <= 9
        assert scores.mean() == pytest.approx(train.mean(), abs=0.05 * train.std())


def test_held_out_images_depend_only_on_ids_and_seed(tmp_path: Path) -> None:
    def parts(shuffled: int | None, seed: int) -> dict[str, set[str]]:
        scored(tmp_path, 500, shuffled=shuffled)
        return ids(read_labelled(config(tmp_path, train="all.csv", split={"val": 0.1, "test": 0.1, "seed": seed})))

    first = parts(None, 0)
    assert parts(1, 0) == parts(2, 0) == first
    other = parts(None, 1)
    assert len(other["val"] & first["val"]) < 20  # of 50; by chance 5


def test_too_few_images_to_hold_out_are_refused(tmp_path: Path) -> None:
    scored(tmp_path, 4)
    with pytest.raises(DataError, match=r"data\.split\.val: 0\.1 of 4 images makes an empty part"):
        read_labelled(config(tmp_path, train="all.csv", split={}))


def test_a_split_file_that_is_ignored_has_a_note(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", [f"a{number},{number}" for number in range(40)])
    written(tmp_path / "val.csv", [f"b{number},{number}" for number in range(8)])
    split = {"val": 0.2, "test": 0.1}
    (note,) = ignored_split_files(config(tmp_path, split=split))
    assert note == f"{tmp_path / 'val.csv'} is not read: data.split.val holds out 0.2 of the training images instead"
    held_out = read_labelled(config(tmp_path, split=split))
    assert {name: len(part.ids) for name, part in held_out.items()} == {"train": 28, "val": 8, "test": 4}
    assert "b0" not in held_out["val"].ids
    for chosen in ({"split": {**split, "val": 0}}, {"split": split, "ratings": "train.csv"}, {}):
        assert ignored_split_files(config(tmp_path, **chosen)) == []


@pytest.mark.parametrize(
    ("files", "hint", "settings"),
    [
        (["scores.csv"], "`data.ratings=scores.csv`", {"data.ratings": "scores.csv"}),
        (["AVA.txt", "README.txt", "pool.csv"], "`data.ratings=AVA.txt`", {"data.ratings": "AVA.txt"}),
        (["my_train.json", "my_test.json"], "`data.train=my_train.json`", {"data.train": "my_train.json"}),
        (["a.csv", "b.xlsx"], "`data.ratings=FILE`, one of a.csv, b.xlsx", {}),
        (["train.csv", "validation.tsv"], "`data.val=validation.tsv`", {"data.val": "validation.tsv"}),
        (["train.csv", "evaluation.csv"], "`data.split.val=0.1`", {"data.split.val": 0.1}),
        (["train.csv", "test.csv"], "`data.split.test=0`", {"data.split.val": 0.1, "data.split.test": 0}),
    ],
)
def test_missing_file_is_reported_with_existing_ones(
    tmp_path: Path, files: list[str], hint: str, settings: dict[str, object]
) -> None:
    for file in files:
        written(tmp_path / file, [f"{file}{number},{number}" for number in range(40)])
    with pytest.raises(DataError, match="no such file") as error:
        read_splits(config(tmp_path))
    assert hint in str(error.value.hint)
    assert error.value.settings == settings


def test_root_that_is_not_a_folder_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "scores.csv", ["a,1"])
    with pytest.raises(DataError, match=r"scores\.csv: is a file, not a folder") as error:
        read_splits(config(file))
    assert error.value.settings == {"data.root": str(tmp_path), "data.ratings": "scores.csv"}
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"photo: there is no such folder.*did you mean 'photos'"):
        read_splits(config(tmp_path / "photo"))


def test_a_named_file_that_is_missing_is_named(tmp_path: Path) -> None:
    written(tmp_path / "scores.csv", ["a,1"])
    with pytest.raises(DataError, match=r"data\.ratings: .*score\.csv: no such file.*did you mean 'scores\.csv'"):
        read_splits(config(tmp_path, ratings="score.csv"))


def test_only_requested_splits_are_read(tmp_path: Path) -> None:
    written(tmp_path / "train.csv", ["a,1"])
    written(tmp_path / "val.csv", ["b,1"])
    written(tmp_path / "test.csv", ["not a table of scores"], header="nothing")
    assert set(read_labelled(config(tmp_path), ("train", "val", "pool"))) == {"train", "val"}
