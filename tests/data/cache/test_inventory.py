"""The parts of a cache are listed, and removed one by one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.index import CacheIndex
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.prepare import prepare
from elta_tune.errors import DataError


def build(root: Path, folder: Path, sizes: list[int], count: int = 3) -> None:
    """A cache of some images of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([number, len(str(folder))]).integers(0, 256, (30, 30, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    files = sorted(map(str, folder.iterdir()))
    cache = ImageCache(root)
    cache.complete(cache.look_up(files, sizes), no_progress, "decoding")


def test_each_folder_and_size_is_listed_with_its_bytes(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert ImageCache(root).entries() == []
    build(root, tmp_path / "one", [16, 20])
    build(root, tmp_path / "other" / "images", [16], count=5)
    entries = {(entry.folder, entry.edge): entry for entry in ImageCache(root).entries()}
    assert {key: entry.images for key, entry in entries.items()} == {
        (str(tmp_path / "one"), 16): 3,
        (str(tmp_path / "one"), 20): 3,
        (str(tmp_path / "other" / "images"), 16): 5,
    }
    for (_, edge), entry in entries.items():
        folder = CacheIndex(root).path / entry.key
        du = subprocess.run(["du", "-b", "-c", *folder.iterdir()], capture_output=True, text=True, check=True).stdout
        assert entry.bytes == int(du.splitlines()[-1].split()[0])
        assert entry.bytes > entry.images * edge**2 * 3


def test_one_is_removed_and_the_others_stay(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    build(root, tmp_path / "one", [16, 20])
    (key,) = [entry.key for entry in ImageCache(root).entries() if entry.edge == 20]
    removed = ImageCache(root).remove(key)
    assert (removed.edge, removed.images) == (20, 3)
    assert [entry.edge for entry in ImageCache(root).entries()] == [16]
    with pytest.raises(DataError, match=f"there is no '{key}'"):
        ImageCache(root).remove(key)


def test_the_last_used_comes_first(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    build(root, tmp_path / "one", [16])
    build(root, tmp_path / "other", [20])
    for entry in ImageCache(root).entries():
        os.utime(CacheIndex(root).path / entry.key, (1, 1))
    build(root, tmp_path / "one", [16])  # which is there
    assert [entry.edge for entry in ImageCache(root).entries()] == [16, 20]


def test_files_of_an_older_version_are_one_part(tmp_path: Path) -> None:
    build(tmp_path / "cache", tmp_path / "one", [16, 20])
    CacheIndex(tmp_path / "cache").path.rename(tmp_path / "cache" / "pixels-01234567")
    (entry,) = ImageCache(tmp_path / "cache").entries()
    assert (entry.key, entry.folder, entry.edge, entry.images) == ("pixels-01234567", None, None, 6)
    ImageCache(tmp_path / "cache").remove("pixels-01234567")
    assert ImageCache(tmp_path / "cache").entries() == []


def test_features_of_an_older_version_are_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "features-0123").mkdir()
    np.save(tmp_path / "features-0123" / "features.npy", np.zeros((7, 3), np.float32))
    (entry,) = ImageCache(tmp_path).entries()
    assert (entry.key, entry.folder, entry.backbone, entry.images) == ("features-0123", None, None, 7)
    ImageCache(tmp_path).remove("features-0123")
    assert ImageCache(tmp_path).entries() == []


def test_nothing_is_removed_while_another_run_writes(tmp_path: Path) -> None:
    build(tmp_path / "cache", tmp_path / "one", [16])
    (entry,) = ImageCache(tmp_path / "cache").entries()
    with (
        CacheIndex(tmp_path / "cache").exclusive_lock(lambda: None),
        pytest.raises(DataError, match="being written by another run"),
    ):
        ImageCache(tmp_path / "cache").remove(entry.key)
    assert ImageCache(tmp_path / "cache").entries() == [entry]


def test_nothing_is_left_when_all_parts_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for split in ("train", "val"):
        build(root, tmp_path / "data" / split, [16])
        rows = "".join(f"{split}/{number}.png,1,2\n" for number in range(3))
        (tmp_path / "data" / f"{split}.csv").write_text(f"image_id,count_1,count_2\n{rows}")
    prepare(DataConfig(root=tmp_path / "data", images=tmp_path / "data", resize=20, crop=16), ImageCache(root))
    (tmp_path / "data" / "none.png").write_bytes(b"")
    build(root, tmp_path / "data", [16], count=1)
    leftover = CacheIndex(root).path / "16-01234567"
    leftover.mkdir()
    (leftover / "pixels.bin").write_bytes(b"of a removal that was killed")
    for entry in ImageCache(root).entries():
        ImageCache(root).remove(entry.key)
    assert {file.name for file in root.rglob("*") if file.is_file()} == {"lock"}


def test_a_demo_that_is_not_whole_is_listed_and_removed(tmp_path: Path) -> None:
    (tmp_path / "demo-0123").mkdir()
    (entry,) = ImageCache(tmp_path).entries()
    assert (entry.key, entry.images) == ("demo-0123", 0)
    ImageCache(tmp_path).remove("demo-0123")
    assert ImageCache(tmp_path).entries() == []


def test_pack_removed_by_another_process_is_not_listed(tmp_path: Path) -> None:
    build(tmp_path / "cache", tmp_path / "one", [16, 20])
    shutil.rmtree(next(CacheIndex(tmp_path / "cache").path.glob("20-*")))
    assert [entry.edge for entry in ImageCache(tmp_path / "cache").entries()] == [16]


def test_file_that_cannot_be_removed_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "cache", tmp_path / "one", [16])
    (entry,) = ImageCache(tmp_path / "cache").entries()

    def refuse(path: Path) -> None:  # root may write everywhere: no mode of a folder stops it
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(DataError, match="can't be removed: Read-only file system"):
        ImageCache(tmp_path / "cache").remove(entry.key)
