"""The cache holds what Pillow makes of each file, finds it by content, and survives kills, races and full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.data.cache import builder, decoding
from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.cache.packs import Images, PackWriter
from elta_tune.data.cache.progress import no_progress
from elta_tune.errors import DataError

SIZES = (24, 16)
BUILD = """
import resource, sys, time
from pathlib import Path
from elta_tune.data.cache import builder
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import DataError

builder.COMMIT_SECONDS = float("inf")  # it commits by the number of images alone

def report(done, total, what):
    print(done, flush=True)
    time.sleep(float(sys.argv[3]))

print("ready", flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))
files = sorted(map(str, Path(sys.argv[1]).iterdir()))
try:
    cache = ImageCache(Path(sys.argv[2]))
    cache.complete(cache.look_up(files, (24, 16)), report, "decoding")
except DataError as error:
    print("refused:", error.message, flush=True)
"""
"""A process that builds a cache on request, and prints its progress."""


def write_images(folder: Path, count: int = 60, edge: int = 50) -> list[str]:
    """Noise of many sizes around an edge, as PNG and JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for number in range(count):
        height, width = random.integers(edge // 2, edge, 2)
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{'png' if number % 2 else 'jpg'}")
    return sorted(map(str, folder.iterdir()))


def opened(root: Path, files: Sequence[str], sizes: Sequence[int] = SIZES) -> CachedImages:
    """The complete cache of some files."""
    cache = ImageCache(root)
    return cache.complete(cache.look_up(files, sizes), no_progress, "decoding")


def pixels(images: Images) -> np.ndarray:
    """All of them."""
    return images.gather(np.arange(len(images)))


def expected(file: str, size: int) -> np.ndarray:
    """Pillow's bilinear squash of an image that has no EXIF."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def assert_right(cached: CachedImages, files: Sequence[str]) -> None:
    """What is cached is what the files hold."""
    assert cached.decoded.tolist() == list(range(len(files)))
    for size, images in cached.images.items():
        for file, image in zip(files, pixels(images), strict=True):
            np.testing.assert_array_equal(image, expected(file, size), err_msg=file)
    for file, preview in zip(files, cached.previews(), strict=True):
        assert abs(preview["thumbnail"] - expected(file, 8).astype(int)).mean() <= 1
        with Image.open(file) as image:
            assert tuple(preview["size"]) == image.size


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes at which images are decoded from now on, an entry for each."""
    calls: list[tuple[int, ...]] = []

    def shrink(content: bytes, sizes: Sequence[int]) -> decoding.Shrunk:
        calls.append(tuple(sizes))
        return decoding.shrink(content, sizes)

    monkeypatch.setattr(builder, "shrink", shrink)
    return calls


def start_build(files: Path, cache: Path, *, pause: float = 0.0, largest: int = -1) -> subprocess.Popen[str]:
    """A process that is about to build, waiting for a line. No file may grow over `largest` bytes."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(files), str(cache), str(pause), str(largest)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    """Lets a waiting process build."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_images_match_pillow_and_each_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "images", 20)
    read: list[str] = []
    monkeypatch.setattr(builder, "read_content", lambda path: read.append(str(path)) or decoding.read_content(path))
    opens: list[object] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda source, **more: opens.append(source) or original(source, **more))
    cached = opened(tmp_path / "cache", files)
    assert sorted(read) == files
    assert len(opens) == len(files)  # for both sizes and the thumbnail
    assert_right(cached, files)


def test_an_image_is_found_by_its_content(tmp_path: Path, decoded: list[tuple[int, ...]]) -> None:
    files = write_images(tmp_path / "images", 10)
    opened(tmp_path / "cache", files)
    assert decoded == [SIZES] * 10
    decoded.clear()
    moved = sorted(map(str, (tmp_path / "images").rename(tmp_path / "moved").iterdir()))
    os.utime(moved[3])
    shutil.copy(moved[4], tmp_path / "moved" / "again.jpg")
    wanted = [str(tmp_path / "moved" / "again.jpg"), *moved[5:2:-1]]  # another folder, order, part and time
    assert_right(opened(tmp_path / "cache", wanted), wanted)
    assert not decoded
    wanted = [*moved[:2], *write_images(tmp_path / "moved" / "new", 1, edge=40)]
    assert_right(opened(tmp_path / "cache", wanted, (16, 30)), wanted)
    assert sorted(decoded) == [(16, 30), (30,), (30,)]


def test_known_files_are_not_read_again_until_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_images(tmp_path / "images", 4)
    opened(tmp_path / "cache", files)
    before = Path(files[1]).read_bytes(), os.stat(files[1])
    read: list[str] = []
    monkeypatch.setattr(builder, "read_content", lambda path: read.append(str(path)) or decoding.read_content(path))
    assert_right(opened(tmp_path / "cache", files), files)
    assert read == []
    Image.new("RGB", (33, 33), (9, 8, 7)).save(files[1])
    assert_right(opened(tmp_path / "cache", files), files)
    assert read == [files[1]]
    Path(files[1]).write_bytes(before[0])
    os.utime(files[1], ns=(before[1].st_mtime_ns, before[1].st_mtime_ns))
    assert_right(opened(tmp_path / "cache", files), files)
    assert read == [files[1]] * 2  # what it was last is another content, so it is looked at


def test_killed_build_resumes(tmp_path: Path, decoded: list[tuple[int, ...]]) -> None:
    count = builder.COMMIT_IMAGES + 100
    files = write_images(tmp_path / "images", count)
    process = start_build(tmp_path / "images", tmp_path / "cache")
    go(process)
    assert process.stdout is not None
    while int(process.stdout.readline()) < builder.COMMIT_IMAGES + 20:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for file in tmp_path.glob("cache/*/*/*.bin"):  # and its last writes are torn
        with file.open("ab") as stream:
            stream.write(b"torn")
    reported: list[int] = []
    known = ImageCache(tmp_path / "cache").look_up(files, SIZES)
    assert len(known.decoded) >= builder.COMMIT_IMAGES
    cached = ImageCache(tmp_path / "cache").complete(known, lambda done, total, what: reported.append(done), "decoding")
    assert reported == list(range(len(known.decoded) + 1, count + 1))
    assert len(decoded) == len(reported)
    assert_right(cached, files)


def test_a_build_that_is_interrupted_can_go_on(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 40)

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    cache = ImageCache(tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        cache.complete(cache.look_up(files, SIZES), interrupt, "decoding")
    assert_right(opened(tmp_path / "cache", files), files)


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images")
    processes = [start_build(tmp_path / "images", tmp_path / "cache", pause=0.005) for _ in range(2)]
    for process in processes:
        go(process)
    lines = [process.communicate(timeout=240)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counted = sorted(int(line) for output in lines for line in output if line != "0")  # 0: it waits for the other
    assert counted == list(range(1, len(files) + 1))
    assert_right(ImageCache(tmp_path / "cache").look_up(files, SIZES), files)


def test_full_disk_is_reported_and_damages_nothing(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images")
    process = start_build(tmp_path / "images", tmp_path / "cache", largest=50_000)
    go(process)
    lines = process.communicate(timeout=240)[0].splitlines()
    assert "the image cache can't be written: File too large" in lines[-1]
    assert_right(opened(tmp_path / "cache", files), files)


def test_undecodable_file_is_named_and_retried_after_a_change(tmp_path: Path, decoded: list[tuple[int, ...]]) -> None:
    files = write_images(tmp_path / "images", 4)
    Path(files[1]).write_bytes(b"")
    Path(files[2]).write_text("no image")
    (tmp_path / "images" / "folder.jpg").mkdir()
    files.append(str(tmp_path / "images" / "folder.jpg"))
    for _ in range(2):
        cached = opened(tmp_path / "cache", files)
        assert cached.decoded.tolist() == [0, 3]
        assert set(cached.unreadable) == {1, 2, 4}
        assert "directory" in cached.unreadable[4]
        assert cached.unreadable[1] == cached.unreadable[2] == "it is not an image"
        np.testing.assert_array_equal(pixels(cached.images[16].subset(cached.decoded))[1], expected(files[3], 16))
        assert len(decoded) == 4
    Image.new("RGB", (30, 30), (1, 2, 3)).save(files[1])
    assert set(opened(tmp_path / "cache", files).unreadable) == {2, 4}


def test_data_larger_than_the_free_space_is_refused(tmp_path: Path, decoded: list[tuple[int, ...]]) -> None:
    files = write_images(tmp_path / "images", 10)
    size = 10 * 3 * (24**2 + 16**2)
    cache = ImageCache(tmp_path / "cache")
    parts = [cache.look_up(files[:4], SIZES), cache.look_up(files[4:], SIZES)]
    assert sum(part.missing_bytes for part in parts) == size
    with pytest.raises(DataError, match=r"decoding takes 25 kB on disk, more than the 24.9 kB allowed"):
        cache.refuse_too_large(parts, size - 51, no_progress)
    assert cache.refuse_too_large(parts, size, no_progress) == parts
    with pytest.raises(DataError, match=r"takes [\d,.]+ GB on disk, more than the [\d.]+ GB that are free in"):
        cache.refuse_too_large([cache.look_up(files, [100_000])] * 1000, None, no_progress)
    assert not decoded


def test_cached_content_under_another_path_needs_no_space(tmp_path: Path, decoded: list[tuple[int, ...]]) -> None:
    opened(tmp_path / "cache", write_images(tmp_path / "images", 10))
    decoded.clear()
    moved = sorted(map(str, (tmp_path / "images").rename(tmp_path / "moved").iterdir()))
    cache = ImageCache(tmp_path / "cache")
    known = cache.look_up(moved, SIZES)
    assert known.missing_bytes > 0
    (part,) = cache.refuse_too_large([known], 0, no_progress)
    assert part.missing_bytes == 0
    assert_right(part, moved)
    assert not decoded


def test_too_large_data_is_refused_before_any_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "cache", write_images(tmp_path / "images", 2))
    files = write_images(tmp_path / "other", 10, edge=40)
    known = ImageCache(tmp_path / "cache").look_up(files, SIZES)
    monkeypatch.setattr(builder, "read_content", lambda path: pytest.fail(f"{path} is read"))
    with pytest.raises(DataError, match="more than the 10 kB allowed"):
        ImageCache(tmp_path / "cache").refuse_too_large([known], 10_000, no_progress)


def test_cache_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 2)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="file: the image cache can't be read: Not a directory"):
        ImageCache(tmp_path / "file").look_up(files, SIZES)
    for root in (Path("/proc/nowhere"), Path("/dev/null/cache")):
        with pytest.raises(DataError, match=r"the image cache can't be (read|written)"):
            opened(root, files)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
from elta_tune.data.cache.packs import Images, Pack

count = 5000
rows = np.arange(count)
images = Images(64, [Pack(Path(sys.argv[1]))], np.zeros_like(rows), rows, np.zeros((count, 16), np.uint8))
images.gather(np.arange(48))
before = peak()
for start in range(0, count, 48):
    images.gather(np.arange(start, min(start + 48, count)))
print(peak() - before)
"""


def test_reading_all_images_takes_the_memory_of_a_batch(tmp_path: Path, watched: Callable[..., list[int]]) -> None:
    writer = PackWriter(tmp_path / "pack", 64, 0)
    thumbnail, random = np.zeros((8, 8, 3), np.uint8), np.random.default_rng(0)
    for _ in range(5000):
        shrunk = decoding.Shrunk({64: random.integers(0, 256, (64, 64, 3), np.uint8)}, thumbnail, (64, 64))
        writer.append(shrunk)
    writer.close()
    (grown,) = watched(MEMORY, tmp_path / "pack")
    assert grown < 6e6  # the images are 61 MB, a batch .6
    assert (tmp_path / "pack" / "pixels.bin").stat().st_size == 5000 * 64 * 64 * 3
