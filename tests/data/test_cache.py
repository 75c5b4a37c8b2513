"""The cache holds what Pillow makes of each file, is built once, and survives kills, races and changed files."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.data.cache import DECODED, UNREADABLE, CacheFolder, open_cache
from elta_tune.data.decoding import decode

SIZES = (24, 16)
BUILD = """
import sys, time
from pathlib import Path
from elta_tune.data.cache import open_cache

def told(done, total, what):
    print(done, flush=True)
    time.sleep(0.005)

print("ready", flush=True)
sys.stdin.readline()
files = sorted(Path(sys.argv[1]).iterdir())
folder = open_cache(Path(sys.argv[2]), files, (24, 16), told, "decoding")
print("folder", folder.path, flush=True)
"""
"""A process that builds a cache when told to, and prints how far it is."""


def silent(done: int, total: int, what: str) -> None:
    """Shows nothing."""


def write_images(folder: Path, count: int = 60, edge: int = 60) -> list[Path]:
    """Noise of many sizes around an edge, as PNG and JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for number in range(count):
        height, width = random.integers(edge // 2, 2 * edge, 2)
        pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.{'png' if number % 2 else 'jpg'}")
    return sorted(folder.iterdir())


def expected(file: Path, size: int) -> np.ndarray:
    """Pillow's bilinear squash of an image that has no EXIF."""
    return np.asarray(Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


def assert_right(cache: CacheFolder, files: list[Path]) -> None:
    """Every array of a cache is what the files hold."""
    assert (cache.status() == DECODED).all()
    for size in SIZES:
        images = cache.images(size)
        assert images.shape == (len(files), size, size, 3)
        for index, file in enumerate(files):
            assert np.abs(images[index].astype(int) - expected(file, size)).mean() <= 1, file
    for index, file in enumerate(files):
        assert np.abs(cache.thumbnails()[index].astype(int) - expected(file, 8)).mean() <= 1, file
        assert cache.digests()[index].tobytes() == hashlib.blake2b(file.read_bytes(), digest_size=16).digest()


def start_build(files: Path, cache: Path) -> subprocess.Popen[str]:
    """A process that is about to build, waiting for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(files), str(cache)],
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


def test_images_are_pillows_bilinear_of_the_whole_picture_and_each_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_images(tmp_path / "images", 20)
    opened: list[object] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda source, *rest: opened.append(source) or original(source, *rest))
    cache = open_cache(tmp_path / "cache", files, SIZES, silent, "decoding")
    assert len(opened) == len(files)  # for both sizes and the thumbnail
    assert_right(cache, files)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((30, 50, 3), np.uint8)
    upright[:10, :10] = 255, 0, 0  # a red corner at the top left, a green one at the top right
    upright[:10, -10:] = 0, 255, 0
    turned = {  # what a camera held that way stores
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "turned.png"
    Image.fromarray(np.ascontiguousarray(turned)).save(file, exif=exif)
    np.testing.assert_array_equal(np.asarray(decode(file.read_bytes())), upright)
    cache = open_cache(tmp_path / "cache", [file], [20], silent, "decoding")
    straight = Image.fromarray(upright).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(cache.images(20)[0], np.asarray(straight))


def test_a_build_that_was_killed_goes_on_where_it_was_and_is_right(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", edge=400)
    process = start_build(tmp_path / "images", tmp_path / "cache")
    go(process)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 10:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    told: list[int] = []
    cache = open_cache(tmp_path / "cache", files, SIZES, lambda done, total, what: told.append(done), "decoding")
    assert told[0] > 10  # what was decoded is not decoded again
    assert told == list(range(told[0], len(files) + 1))
    assert len(told) > 10  # it was killed well before its end
    assert_right(cache, files)


def test_a_build_that_is_interrupted_is_not_complete_and_can_go_on(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 40)

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path / "cache", files, SIZES, interrupt, "decoding")
    assert not list(tmp_path.glob("cache/*/complete.json"))
    assert_right(open_cache(tmp_path / "cache", files, SIZES, silent, "decoding"), files)


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images")
    processes = [start_build(tmp_path / "images", tmp_path / "cache") for _ in range(2)]
    for process in processes:
        go(process)
    lines = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert lines[0][-1] == lines[1][-1]  # the same folder
    counted = [line for output in lines for line in output[:-1]]
    assert [int(line) for line in counted] == list(range(1, len(files) + 1))  # by one of them alone
    assert_right(CacheFolder(Path(lines[0][-1].removeprefix("folder ")), files), files)


def test_a_complete_cache_is_used_as_it_is_and_a_changed_file_gets_another(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 4)
    first = open_cache(tmp_path / "cache", files, SIZES, silent, "decoding")

    def refuse(done: int, total: int, what: str) -> None:
        raise AssertionError("nothing is left to decode")

    assert open_cache(tmp_path / "cache", files, SIZES[::-1], refuse, "decoding").path == first.path
    Image.new("RGB", (33, 33), (9, 8, 7)).save(files[0])
    again = open_cache(tmp_path / "cache", files, SIZES, silent, "decoding")
    assert again.path != first.path
    assert_right(again, files)


def test_what_can_not_be_decoded_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    files = write_images(tmp_path / "images", 4)
    files[1].write_bytes(b"")
    files[2].write_text("no image")
    (tmp_path / "images" / "folder.jpg").mkdir()
    files.append(tmp_path / "images" / "folder.jpg")
    cache = open_cache(tmp_path / "cache", files, SIZES, silent, "decoding")
    assert cache.status().tolist() == [DECODED, UNREADABLE, UNREADABLE, DECODED, UNREADABLE]
    assert set(cache.reasons()) == {1, 2, 4}
    assert all(cache.reasons().values())
    np.testing.assert_array_equal(cache.images(16)[3], expected(files[3], 16))
