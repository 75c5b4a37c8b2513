"""The cache: every image decoded once, resized, as uint8 in memory-mapped files that all trials of all studies share.

    CACHE/images-<key>/
    ├── 300.npy  256.npy     (N, S, S, 3) uint8, one file per size
    ├── status.npy           (N,) uint8: 0 to do, 1 decoded, 2 unreadable
    ├── digests.npy          (N, 16) uint8: blake2b of the file's bytes, 0 if unreadable
    ├── thumbnails.npy       (N, 8, 8, 3) uint8
    └── complete.json        written last: reasons of what is unreadable

The key is a hash of the files (path, size, time) and the sizes. A build that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from elta_tune.data.decoding import RULE, THUMBNAIL, careful, read_content, shrink
from elta_tune.errors import DataError

TODO, DECODED, UNREADABLE = 0, 1, 2
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True)
class CacheFolder:
    """The complete cache of some files; arrays are indexed by the files' order."""

    path: Path
    files: Sequence[Path]

    def images(self, size: int) -> NDArray[np.uint8]:
        """(N, S, S, 3), memory-mapped."""
        images: NDArray[np.uint8] = open_memmap(self.path / f"{size}.npy", mode="r")
        return images

    def status(self) -> NDArray[np.uint8]:
        """(N,): DECODED or UNREADABLE."""
        status: NDArray[np.uint8] = np.load(self.path / "status.npy")
        return status

    def digests(self) -> NDArray[np.uint8]:
        """(N, 16): hash of each file's bytes."""
        digests: NDArray[np.uint8] = np.load(self.path / "digests.npy")
        return digests

    def thumbnails(self) -> NDArray[np.uint8]:
        """(N, 8, 8, 3)."""
        thumbnails: NDArray[np.uint8] = np.load(self.path / "thumbnails.npy")
        return thumbnails

    def reasons(self) -> dict[int, str]:
        """Why a file is unreadable, by its index."""
        found = json.loads((self.path / "complete.json").read_text(encoding="utf-8"))["unreadable"]
        return {int(index): reason for index, reason in found.items()}


def open_cache(root: Path, files: Sequence[Path], sizes: Sequence[int], progress: Progress, what: str) -> CacheFolder:
    """The cache of some files, built if it is not there. Two processes that ask at once build it once.

    Raises:
        DataError: it can't be written.
    """
    folder = CacheFolder(root / f"images-{_key(files, sizes)}", files)
    if (folder.path / "complete.json").exists():
        return folder
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        with _locked(folder.path / "lock"):
            if not (folder.path / "complete.json").exists():
                _build(folder.path, files, sorted(set(sizes)), progress, what)
    except OSError as error:
        raise DataError(f"{folder.path}: the image cache can't be written: {error.strerror or error}") from error
    return folder


def _key(files: Sequence[Path], sizes: Sequence[int]) -> str:
    digest = hashlib.blake2b(f"{RULE} {sorted(set(sizes))}".encode(), digest_size=12)
    for file in files:
        facts = file.stat()
        digest.update(f"\0{file}\0{facts.st_size}\0{facts.st_mtime_ns}".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(path: Path, files: Sequence[Path], sizes: Sequence[int], progress: Progress, what: str) -> None:
    """Decodes what is to do; threads suffice, since Pillow decodes and resizes without the interpreter's lock."""
    count = len(files)
    arrays = {size: _array(path / f"{size}.npy", (count, size, size, 3)) for size in sizes}
    status = _array(path / "status.npy", (count,))
    digests = _array(path / "digests.npy", (count, 16))
    thumbnails = _array(path / "thumbnails.npy", (count, THUMBNAIL, THUMBNAIL, 3))
    reasons: dict[int, str] = {}

    def store(index: int) -> None:
        try:
            content = read_content(files[index])
            shrunk = shrink(content, sizes)
        except Exception as error:  # a hostile file may raise anything; that it is unreadable is all that counts
            status[index], reasons[index] = UNREADABLE, f"{type(error).__name__}: {error}"
            return
        digests[index] = np.frombuffer(hashlib.blake2b(content, digest_size=16).digest(), np.uint8)
        for size, array in arrays.items():
            array[index] = shrunk.pixels[size]
        thumbnails[index] = shrunk.thumbnail
        status[index] = DECODED  # after the pixels: a kill between leaves it to do

    todo = [index for index in range(count) if status[index] != DECODED]
    with (
        careful(),
        ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool,
    ):
        for done, _ in enumerate(pool.map(store, todo), start=count - len(todo) + 1):
            progress(done, count, what)
    for array in (*arrays.values(), status, digests, thumbnails):
        array.flush()
    aside = path / "complete.json.tmp"
    aside.write_text(json.dumps({"rule": RULE, "files": count, "unreadable": reasons}), encoding="utf-8")
    aside.replace(path / "complete.json")


def _array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """The array of an earlier, killed build, or a new one of zeros."""
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
        array = open_memmap(path, mode="r+")
        if array.shape == shape:
            return array
    return open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
