"""A trial uses the images that its study began with, and does not look at their files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data.cache import builder
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.index import CacheIndex
from elta_tune.data.dataset import Dataset, Split
from elta_tune.data.prepare import open_dataset, prepare
from elta_tune.errors import DataError


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


def redden(file: Path) -> None:
    """Replaces an image, so that the file system shows the change."""
    before = file.stat().st_mtime
    Image.new("RGB", (20, 20), (250, 5, 5)).save(file)
    os.utime(file, (before + 2, before + 2))


def assert_as_begun(dataset: Dataset) -> None:
    """The images and labels of `write_root`."""
    assert dataset.train.ids.tolist() == ["train0.png", "train3.png", "train4.png", "train5.png"]
    assert reds(dataset.train) == reds(dataset.train, 16) == [0, 3, 4, 5]
    assert reds(dataset.val) == [100, 101, 102, 103, 104, 105]
    assert dataset.train.left_out == (("train1.png", "there is no such file"), ("train2.png", "it is not an image"))


def test_a_trial_needs_no_file_of_an_image(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    assert_as_begun(prepare(config, ImageCache(tmp_path / "cache")))
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert_as_begun(open_dataset(config, ImageCache(tmp_path / "cache")))


def test_trial_sees_no_image_changed_after_the_study_began(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, ImageCache(tmp_path / "cache"))
    redden(tmp_path / "images" / "val0.png")
    assert_as_begun(open_dataset(config, ImageCache(tmp_path / "cache")))
    assert reds(prepare(config, ImageCache(tmp_path / "cache")).val)[0] == 250
    assert reds(open_dataset(config, ImageCache(tmp_path / "cache")).val)[0] == 250


STUDY = """
import sys
from pathlib import Path
from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
prepare(DataConfig.model_validate_json(sys.argv[1]), ImageCache(Path(sys.argv[2])))
print("goes on", flush=True)
sys.stdin.read()
"""


def test_other_studies_do_not_change_images_of_a_resumed_one(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    command = [sys.executable, "-c", STUDY, config.model_dump_json(), str(tmp_path / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "goes on\n"
        assert_as_begun(prepare(config, ImageCache(tmp_path / "cache")))  # the same images may be shared
        redden(tmp_path / "images" / "val0.png")
        with pytest.raises(DataError, match="have changed since another run") as refused:
            prepare(config, ImageCache(tmp_path / "cache"))
        assert "`cache=FOLDER`" in str(refused.value.hint)
        assert_as_begun(open_dataset(config, ImageCache(tmp_path / "cache")))
        running.communicate("")
    assert reds(prepare(config, ImageCache(tmp_path / "cache")).val)[0] == 250


def test_snapshot_is_not_shared_with_a_stricter_study(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, ImageCache(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"2 of 6 images are missing .* data\.max_missing"):
        open_dataset(config.model_copy(update={"max_missing": 0.1}), ImageCache(tmp_path / "cache"))


@pytest.mark.parametrize("kept", [0, 1, 100, 5000, -1])
def test_a_torn_index_is_made_again(tmp_path: Path, kept: int) -> None:
    config, cache = write_root(tmp_path), ImageCache(tmp_path / "cache")
    prepare(config, cache)
    (index,) = (tmp_path / "cache").glob("pixels-*/index.sqlite")
    index.write_bytes(index.read_bytes()[:kept])
    assert_as_begun(open_dataset(config, cache))
    assert_as_begun(prepare(config, cache))
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    assert_as_begun(open_dataset(config, cache))  # out of the snapshot
    assert len({path.parent for path in (tmp_path / "cache").glob("pixels-*/*/pixels.bin")}) == 2  # one for each size


def test_names_of_images_need_not_be_utf8(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    (tmp_path / "pool").mkdir()
    name = os.fsdecode(b"fot\xf6.png")
    Image.new("RGB", (20, 20), (200, 5, 5)).save(tmp_path / "pool" / name)
    (tmp_path / "pool" / os.fsdecode(b"tom\xe9.jpg")).write_bytes(b"none")
    config = config.model_copy(update={"pool": tmp_path / "pool"})
    prepare(config, ImageCache(tmp_path / "cache"))
    pool = open_dataset(config, ImageCache(tmp_path / "cache")).pool
    assert pool is not None
    assert pool.ids.tolist() == [name]
    assert reds(pool) == [200]
    assert len(pool.fingerprint) == 16


def test_other_ids_or_sizes_are_another_snapshot(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, ImageCache(tmp_path / "cache"))
    larger = config.model_copy(update={"crop": 14})
    assert reds(open_dataset(larger, ImageCache(tmp_path / "cache")).val, 14) == [100, 101, 102, 103, 104, 105]
    lines = (tmp_path / "val.csv").read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join([lines[0], *lines[:3:-1]]) + "\n")
    assert reds(open_dataset(config, ImageCache(tmp_path / "cache")).val) == [105, 104, 103]


def test_images_that_were_removed_are_decoded_again(tmp_path: Path) -> None:
    config = write_root(tmp_path)
    prepare(config, ImageCache(tmp_path / "cache"))
    opened = open_dataset(config, ImageCache(tmp_path / "cache"))
    for entry in ImageCache(tmp_path / "cache").entries():
        ImageCache(tmp_path / "cache").remove(entry.key)
    assert_as_begun(opened)  # what is open stays
    # Another order of images under the same name: the snapshot must not take rows of the removed pack for it.
    rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "other.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n")
    open_dataset(config.model_copy(update={"train": tmp_path / "other.csv"}), ImageCache(tmp_path / "cache"))
    assert_as_begun(open_dataset(config, ImageCache(tmp_path / "cache")))


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """A folder of which this process, as a user without rights, can only read what is written before `seteuid`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        os.seteuid(os.getuid())
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)


def test_a_complete_cache_may_be_read_only(unprivileged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, cache = write_root(unprivileged), ImageCache(unprivileged / "cache")
    prepare(config, cache)
    CacheIndex(cache.root).change(("DELETE FROM snapshots WHERE key IS NOT ?", [(None,)]))
    monkeypatch.setattr(builder, "shrink", lambda content, sizes: pytest.fail("nothing is left to decode"))
    for path in (unprivileged, *unprivileged.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(PermissionError):
        (cache.root / "file").write_text("")
    assert_as_begun(prepare(config, cache))
    assert_as_begun(open_dataset(config, cache))
