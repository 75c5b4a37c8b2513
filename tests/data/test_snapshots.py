"""A trial takes the images that its study began with, without a look at their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data import builder
from elta_tune.data.dataset import Dataset, Split, open_dataset, prepare
from elta_tune.data.inventory import list_entries, remove_entry


def write_root(root: Path, count: int = 6) -> DataConfig:
    """Images each of another grey, of which one is missing and one is none."""
    (root / "images").mkdir(parents=True)
    for number, split in enumerate(("train", "val")):
        names = [f"{split}{index}.png" for index in range(count)]
        for index, name in enumerate(names):
            Image.new("RGB", (20, 20), (100 * number + index, 5, 5)).save(root / "images" / name)
        (root / f"{split}.csv").write_text("image_id,count_1,count_2\n" + "".join(f"{name},1,2\n" for name in names))
    (root / "images" / "train1.png").unlink()
    (root / "images" / "train2.png").write_bytes(b"")
    return DataConfig.model_validate({"root": root, "resize": 16, "crop": 12, "max_missing": 0.5})


def reds(split: Split, edge: int = 12) -> list[int]:
    """The red of each image."""
    images = split.images[edge]
    return [int(image[0, 0, 0]) for image in images.gather(np.arange(len(images)))]


def assert_as_begun(dataset: Dataset) -> None:
    """The images and labels of `write_root`."""
    assert dataset.train.ids.tolist() == ["train0.png", "train3.png", "train4.png", "train5.png"]
    assert reds(dataset.train) == reds(dataset.train, 16) == [0, 3, 4, 5]
    assert reds(dataset.val) == [100, 101, 102, 103, 104, 105]
    assert dataset.train.left_out == (("train1.png", "there is no such file"), ("train2.png", "it is no image"))


def test_a_trial_needs_no_file_of_an_image(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    assert_as_begun(prepare(config, tmp_path / "cache"))
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert_as_begun(open_dataset(config, tmp_path / "cache"))


def test_a_trial_sees_no_image_that_changed_after_its_study_began(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, tmp_path / "cache")
    Image.new("RGB", (20, 20), (250, 5, 5)).save(tmp_path / "images" / "val0.png")
    assert_as_begun(open_dataset(config, tmp_path / "cache"))
    assert reds(prepare(config, tmp_path / "cache").val)[0] == 250
    assert reds(open_dataset(config, tmp_path / "cache").val)[0] == 250


def test_other_ids_or_sizes_are_another_snapshot(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, tmp_path / "cache")
    larger = config.model_copy(update={"crop": 14})
    assert reds(open_dataset(larger, tmp_path / "cache").val, 14) == [100, 101, 102, 103, 104, 105]
    lines = (tmp_path / "val.csv").read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join([lines[0], *lines[:3:-1]]) + "\n")
    assert reds(open_dataset(config, tmp_path / "cache").val) == [105, 104, 103]


def test_images_that_were_removed_are_decoded_again(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, tmp_path / "cache")
    opened = open_dataset(config, tmp_path / "cache")
    for entry in list_entries(tmp_path / "cache"):
        remove_entry(tmp_path / "cache", entry.key)
    assert_as_begun(opened)  # what is open stays
    # Another order of images under the same name: the snapshot must not take rows of the removed pack for it.
    rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n")
    open_dataset(config.model_copy(update={"train": tmp_path / "other.csv"}), tmp_path / "cache")
    assert_as_begun(open_dataset(config, tmp_path / "cache"))


def test_a_cache_that_is_complete_need_not_be_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_root(tmp_path)
    prepare(config, tmp_path / "cache")
    shutil.rmtree(next((tmp_path / "cache").glob("*/snapshots")))
    (next((tmp_path / "cache").glob("pixels-*")) / "snapshots").write_text("no folder")

    def refuse(content: bytes, sizes: object) -> None:
        raise AssertionError("nothing is left to decode")

    monkeypatch.setattr(builder, "shrink", refuse)
    assert_as_begun(prepare(config, tmp_path / "cache"))
    assert_as_begun(open_dataset(config, tmp_path / "cache"))
