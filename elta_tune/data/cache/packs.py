"""Packs: decoded images of one edge, one after the other in two files that only grow.

    300-1f2e3d4c/
    ├── pixels.bin       (S, S, 3) uint8 per image
    └── previews.bin     width, height and thumbnail (8, 8, 3) per image

The index says which images a pack has; what a killed writer left after them does not count. Images are read where they
are needed, not memory-mapped: a process holds its batch and nothing else.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.cache.decoding import THUMBNAIL, Shrunk

DIGEST = 16
"""Bytes of the hash of a file's content."""
PREVIEW = np.dtype([("size", "<u4", 2), ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL, 3))])
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
Previews = NDArray[np.void]


class Pack:
    """A pack to read from. It stays readable after its folder was removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels = self._open("pixels.bin")
        self._previews = self._open("previews.bin")

    def _open(self, name: str) -> int:
        descriptor = os.open(self.path / name, os.O_RDONLY)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def previews(self, rows: Index) -> Previews:
        """(N,) of `size` (2,), upright width and height of the whole image, and `thumbnail` (8, 8, 3)."""
        count = int(rows.max(initial=-1)) + 1
        previews = np.empty(count, PREVIEW)
        if os.preadv(self._previews, [previews.view(np.uint8).data], 0) != previews.nbytes:
            raise OSError(f"{self.path / 'previews.bin'}: is damaged: it ends before image {count - 1}")
        return previews[rows]

    def read_into(self, row: int, image: Bytes) -> None:
        """Reads an image into an array (S, S, 3).

        Raises:
            OSError: the file is damaged.
        """
        if os.preadv(self._pixels, [image.data], row * image.nbytes) != image.nbytes:
            raise OSError(f"{self.path / 'pixels.bin'}: is damaged: it ends before image {row}")


def is_whole(path: Path, edge: int, count: int) -> bool:
    """Whether the files of a pack have so many images."""
    sizes = {"pixels.bin": edge * edge * 3, "previews.bin": PREVIEW.itemsize}
    try:
        return all((path / name).stat().st_size >= count * size for name, size in sizes.items())
    except OSError:
        return False


class PackWriter:
    """Appends to a pack that has `count` images, or makes it. One writer at a time."""

    def __init__(self, path: Path, edge: int, count: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._edge = edge
        self._pixels = FileIO(path / "pixels.bin", "a")
        self._previews = FileIO(path / "previews.bin", "a")
        self._pixels.truncate(count * edge * edge * 3)
        self._previews.truncate(count * PREVIEW.itemsize)
        self.count = count

    def append(self, shrunk: Shrunk) -> int:
        """Adds an image; returns its row."""
        _write(self._pixels, shrunk.pixels[self._edge].data.cast("B"))
        _write(self._previews, memoryview(np.array((shrunk.size, shrunk.thumbnail), PREVIEW).tobytes()))
        self.count += 1
        return self.count - 1

    def sync(self) -> None:
        """Waits until all images would survive a loss of power."""
        os.fsync(self._pixels)
        os.fsync(self._previews)

    def close(self) -> None:
        """Ends the writing."""
        self._pixels.close()
        self._previews.close()


def _write(file: FileIO, content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]


@dataclass(frozen=True)
class Images:
    """N images of one edge: image i is number `rows[i]` of `packs[owners[i]]`, or in no pack if that is -1.

    `digests` (N, 16) of the bytes of their files.
    """

    edge: int
    packs: Sequence[Pack]
    owners: Index
    rows: Index
    digests: Bytes

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Index) -> Bytes:
        """Images (B, S, S, 3) by their positions (B,)."""
        images = np.empty((len(index), self.edge, self.edge, 3), np.uint8)
        for image, owner, row in zip(images, self.owners[index], self.rows[index], strict=True):
            self.packs[owner].read_into(int(row), image)
        return images

    def previews(self) -> Previews:
        """(N,) of `size` (2,), upright width and height of the whole image, and `thumbnail` (8, 8, 3)."""
        previews = np.empty(len(self), PREVIEW)
        for number, pack in enumerate(self.packs):
            own = self.owners == number
            previews[own] = pack.previews(self.rows[own])
        return previews

    def subset(self, index: Index) -> Images:
        """Only the images at these positions, and only their packs."""
        used, owners = np.unique(self.owners[index], return_inverse=True)
        return Images(self.edge, [self.packs[owner] for owner in used], owners, self.rows[index], self.digests[index])

    def joined(self, other: Images) -> Images:
        """These images, and those of another after them."""
        owners = np.concatenate([self.owners, other.owners + len(self.packs)])
        rows = np.concatenate([self.rows, other.rows])
        return Images(
            self.edge, [*self.packs, *other.packs], owners, rows, np.concatenate([self.digests, other.digests])
        )
