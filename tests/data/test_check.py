"""The check reports the images of a study in verifiable counts, and every reason to refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache import builder
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.check import examine
from elta_tune.data.prepare import prepare
from elta_tune.data.report import describe
from elta_tune.errors import DataError

VOTES = {
    "train": [[3, 0, 1], [0, 0, 5], [1, 1, 1], [0, 4, 0], [6, 2, 0], [0, 1, 9], [2, 2, 2], [1, 0, 2]],
    "val": [[1, 2, 3], [3, 2, 1]],
}


def write_root(root: Path) -> TrialConfig:
    """Eight training images, two for validation, three in the pool; each is another picture."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(4)
    for split, count in {"train": 8, "val": 2, "pool": 3}.items():
        lines = ["image_id" if split == "pool" else "image_id,count_1,count_2,count_3"]
        for number in range(count):
            name = f"{split}{number}.png"
            Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(root / "images" / name)
            lines.append(",".join([name, *map(str, VOTES[split][number] if split in VOTES else [])]))
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    data = {"root": str(root), "resize": 12, "crop": 10, "max_missing": 0.3}
    return TrialConfig.model_validate({"data": data, "training": {"batch_size": 4}})


def checked(config: TrialConfig, **options: bool) -> dict[str, Any]:
    """The description, by way of JSON."""
    cache = Path(str(config.data.root)) / "cache"
    content = describe(examine(config.data, ImageCache(cache), no_progress, recipes=[config], **options))
    assert json.loads(json.dumps(content)) == content
    return content


def test_each_number_is_the_one_that_one_counts(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    content = checked(config)
    train, val, pool = (content["splits"][name] for name in ("train", "val", "pool"))
    assert [train["rows"], val["rows"], pool["rows"]] == [8, 2, 3]
    assert train["votes"] == {"min": 3, "median": 4.5, "max": 10}  # 4 5 3 4 8 10 6 3
    scores = [(a + 2 * b + 3 * c) / (a + b + c) for a, b, c in VOTES["train"]]
    assert train["mos"]["mean"] == pytest.approx(sum(scores) / 8)
    assert train["mos"]["std"] == pytest.approx(np.std(scores))
    # 1.25 1.5 2 2 2 2.33 2.9 3: the 20th percentile is 1.5 + .4 · .5, the 80th 2.33 + .6 · .567
    assert content["tail_cuts"] == pytest.approx([1.7, 2.6733333])
    assert train["segments"] == {"low": 2, "mid": 4, "high": 2}
    assert val["segments"] == {"low": 1, "mid": 1, "high": 0}  # 2.33, 1.67
    assert len(train["histogram"]) == 18
    assert [index for index, count in enumerate(train["histogram"]) for _ in range(count)] == [
        min(int((score - 1) * 9), 17) for score in sorted(scores)
    ]
    assert pool["votes"] is pool["mos"] is pool["histogram"] is None
    assert content["ok"]
    assert content["shared"] == content["refusals"] == []
    dataset = prepare(config.data, ImageCache(tmp_path / "cache"))
    assert [train["hash"], val["hash"]] == [dataset.train.fingerprint, dataset.val.fingerprint]


def test_images_are_counted_as_they_are_found(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    (tmp_path / "images" / "train5.png").unlink()
    (tmp_path / "images" / "train0.png").write_bytes(b"broken")
    content = checked(config)
    images = content["splits"]["train"]["images"]
    left_out = images.pop("left_out")
    assert images == {"found": 7, "missing": 1, "unreadable": 1, "used": 6}
    assert [item["id"] for item in left_out] == ["train5.png", "train0.png"]
    assert sum(content["splits"]["train"]["histogram"]) == 6
    assert content["splits"]["train"]["votes"] == {"min": 3, "median": 4.5, "max": 8}  # 5 3 4 8 6 3
    assert content["ok"]


def test_all_reasons_to_refuse_a_study_are_reported_at_once(tmp_path: Path) -> None:
    config = write_root(tmp_path).replace({"training.batch_size": 9, "data.max_missing": 0.1})
    (tmp_path / "images" / "train5.png").unlink()
    with (tmp_path / "val.csv").open("a") as file:
        file.write("train0.png,1,1,1\n")
    with (tmp_path / "pool.csv").open("a") as file:
        file.write("val0.png\n")
    content = checked(config)
    messages = [item["message"] for item in content["refusals"]]
    assert not content["ok"]
    assert len(messages) == 3
    for part in ("'train0.png' is also in", "'val0.png' is also in", "max_missing (10.00%)", "batch_size: 9"):
        assert part in " ".join(messages)
    with pytest.raises(DataError):
        prepare(config.data, ImageCache(tmp_path / "cache"))


def test_nothing_is_decoded_where_the_study_is_refused_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_root(tmp_path)
    with (tmp_path / "val.csv").open("a") as file:
        file.write("train0.png,1,1,1\n")
    monkeypatch.setattr(builder, "shrink", lambda *arguments: pytest.fail("an image is decoded"))
    content = checked(config)
    assert not content["ok"]
    assert content["splits"]["train"]["images"] == {
        "found": 8,
        "missing": 0,
        "unreadable": None,
        "used": None,
        "left_out": [],
    }


def test_labels_are_checked_without_images(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    everything = checked(config)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    (tmp_path / "images").rmdir()
    content = checked(config, labels_only=True)
    assert content["ok"]
    for name in ("train", "val"):
        for key in ("rows", "votes", "mos", "histogram", "segments", "hash"):
            assert content["splits"][name][key] == everything["splits"][name][key]
        assert content["splits"][name]["images"] is None
    with (tmp_path / "val.csv").open("a") as file:
        file.write("train0.png,1,1,1\n")
    assert not checked(config, labels_only=True)["ok"]


@pytest.mark.parametrize(
    ("rows", "metric", "why"),
    [
        (2, "srcc", "srcc is not defined on its 2 images: all scores are 2"),
        (1, "plcc", "plcc is not defined on its 1 image: all scores are 2"),
        (2, "mae_high", "mae_high is not defined on its 2 images: all scores are 2"),
        (2, "mae", None),
    ],
)
def test_a_validation_that_no_prediction_does_well_on_is_refused(
    tmp_path: Path, rows: int, metric: str, why: str | None
) -> None:
    config = write_root(tmp_path).replace({"evaluation.metric": metric})
    lines = ["image_id,count_1,count_2,count_3", "val0.png,1,0,1", "val1.png,2,3,2"]
    (tmp_path / "val.csv").write_text("\n".join(lines[: rows + 1]) + "\n")
    for options in ({}, {"labels_only": True}):
        refusals = [refusal["message"] for refusal in checked(config, **options)["refusals"]]
        assert refusals == ([] if why is None else [f"{tmp_path / 'val.csv'}: {why}"])


def test_duplicate_images_are_reported_with_their_splits(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    Image.open(tmp_path / "images" / "pool1.png").save(tmp_path / "images" / "holiday.bmp")
    Image.open(tmp_path / "images" / "train2.png").save(tmp_path / "images" / "again.bmp")
    for split, name in (("val", "holiday.bmp"), ("train", "again.bmp")):
        with (tmp_path / f"{split}.csv").open("a") as file:
            file.write(f"{name},1,1,1\n")
    content = checked(config)
    assert [
        (item["first"]["split"], item["first"]["id"], item["second"]["split"], item["second"]["id"], item["refused"])
        for item in content["shared"]
    ] == [
        ("train", "again.bmp", "train", "train2.png", False),
        ("pool", "pool1.png", "val", "holiday.bmp", True),
    ]
    assert {item["same"] for item in content["shared"]} == {"pixels"}
    assert content["splits"]["train"]["twice"] == 1


def test_self_training_without_a_pool_is_refused(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    (tmp_path / "pool.csv").unlink()
    assert checked(config)["ok"]
    (refusal,) = checked(config.replace({"self_training.rounds": 1}))["refusals"]
    assert "there is no pool" in refusal["message"]


@pytest.mark.parametrize("counts", ["1,0,0", "0.2,0.3,0.5", "2.5,0,1"])
def test_votes_are_counted_where_they_are_counts(tmp_path: Path, counts: str) -> None:
    config = write_root(tmp_path)
    rows = "".join(f"train{number}.png,{counts}\n" for number in range(8))
    (tmp_path / "train.csv").write_text(f"image_id,count_1,count_2,count_3\n{rows}")
    votes = checked(config, labels_only=True)["splits"]["train"]["votes"]
    assert votes == ({"min": 1, "median": 1, "max": 1} if counts == "1,0,0" else None)


def test_ava_is_checked_whole(shared: Path, tmp_path: Path) -> None:
    file = shared / "data" / "ava" / "ava_labels.csv"
    data = {"ratings": str(file), "split": {"val": 0.05, "test": 0.05}}
    content = describe(
        examine(
            DataConfig.model_validate(data),
            ImageCache(tmp_path),
            no_progress,
            recipes=[TrialConfig()],
            labels_only=True,
        )
    )
    assert sum(split["rows"] for split in content["splits"].values()) == 255_502
    assert content["splits"]["train"]["votes"]["min"] == 78
    assert content["tail_cuts"] == pytest.approx([4.79, 5.99], abs=0.01)
    for split in content["splits"].values():
        assert split["mos"]["mean"] == pytest.approx(5.383, abs=0.001)
        assert split["mos"]["std"] == pytest.approx(0.731, abs=0.001)
    assert content["ok"]


def write_own(root: Path, images: str = "images") -> TrialConfig:
    """One CSV of one's own, with a problem of each kind: the recipe of a newcomer who only names the folder."""
    (root / images).mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    rows = []
    for number in range(40):
        name = f"photo{number:02d}.png"
        rows.append(f"{name},{'' if number == 7 else random.integers(10, 50) / 10}")
        if number != 9:
            Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(root / images / name)
    (root / "scores.csv").write_text("\n".join(["Filename,Rating", *rows]) + "\n")
    return TrialConfig.model_validate(
        {"data": {"root": str(root), "resize": 12, "crop": 10}, "training": {"batch_size": 64}}
    )


@pytest.mark.parametrize("images", ["images", ".", "pictures"])
def test_all_problems_of_a_data_set_are_found_at_once(tmp_path: Path, images: str) -> None:
    config = write_own(tmp_path, images)
    examined = examine(config.data, ImageCache(tmp_path / "cache"), no_progress, recipes=[config])
    refusals = [f"{error.message}: {error.hint}" for error in examined.refusals]
    expected = {
        "train.csv: no such file": "`data.ratings=scores.csv`",
        "scores.csv:9: Rating: is empty": "`data.on_unlabelled=skip`",
        "Rating: the rating scale is unknown": "`data.scale=[1,5]`",
        "this is the training file, and it has no column of splits": "`data.split.val=0.1`",
        "1 of 4 images": "`data.max_missing=0.25`",
        "model.head: emd needs": "`model.head=mse`",
        "training.batch_size: 64 is more than the 31 images": "`training.batch_size=8`",
    }
    if images != "images":
        expected["data.images: "] = f"`data.images={images}`"
    for problem, setting in expected.items():
        (found,) = (refusal for refusal in refusals if problem in refusal)
        assert setting in found
    assert len(refusals) == len(expected)


def test_the_settings_that_are_named_are_enough(tmp_path: Path) -> None:
    config = write_own(tmp_path, "pictures")
    with pytest.raises(DataError) as error:
        prepare(config.data, ImageCache(tmp_path / "cache"), recipes=[config])
    assert error.value.message.startswith("8 problems:\n- ")
    again = config.replace({**error.value.settings, "training.batch_size": 8})
    dataset = prepare(again.data, ImageCache(tmp_path / "cache"), recipes=[again])
    assert len(dataset.train.ids) + len(dataset.val.ids) + len(dataset.test.ids if dataset.test else ()) == 38
    assert (dataset.train.unlabelled, dataset.val.unlabelled) == (1, 1)
    assert any("1 row without a rating skipped: 'photo07.png'" in line for line in dataset.warnings)
    assert any("only 4 validation images" in line for line in dataset.warnings)


def test_a_recipe_is_checked_with_each_of_its_variants(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    variants = [config, *(config.replace({"training.batch_size": size}) for size in (4, 9, 9))]
    examined = examine(config.data, ImageCache(tmp_path / "cache"), no_progress, recipes=variants, labels_only=True)
    (refusal,) = examined.refusals
    assert refusal.message.startswith("training.batch_size: 9 is more than the 8 images of ")
