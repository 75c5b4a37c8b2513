"""Packs: decoded images of one edge, one after the other in files that only grow.

    300-1f2e3d4c/
    ├── about.json       its name, the images' folder and edge, the rule that decoded them
    ├── pixels.bin       (S, S, 3) uint8 per image
    ├── previews.bin     width, height and thumbnail (8, 8, 3) per image
    └── digests.bin      hash of the file's bytes per image, written last: what has none is not there

Images are read where they are asked for, not memory-mapped: a process holds its batch and nothing else.
"""

from __future__ import annotations

import json
import os
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.cache.decoding import RULE, THUMBNAIL, Shrunk

DIGEST = 16
"""Bytes of the hash of a file's content."""
PREVIEW = np.dtype([("size", "<u4", 2), ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL, 3))])
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
Previews = NDArray[np.void]


def positions(wanted: Bytes, known: Bytes) -> Index:
    """Where each key of `wanted` (N, B) stands in `known` (M, B), the last of several places; -1 is nowhere: (N,)."""
    if not len(wanted) or not len(known):
        return np.full(len(wanted), -1)
    wanted, known = (np.ascontiguousarray(keys).view(f"S{keys.shape[1]}")[:, 0] for keys in (wanted, known))
    order = np.argsort(known, kind="stable")
    last = order[np.maximum(np.searchsorted(known, wanted, side="right", sorter=order) - 1, 0)]
    return np.where(known[last] == wanted, last, -1)


def read_records(path: Path, size: int) -> Bytes:
    """All whole records (N, size) of a file, which may not be there; one that was torn by a kill does not count."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    return np.frombuffer(content, np.uint8, len(content) // size * size).reshape(-1, size)


class Appender:
    """Appends to a file, which is made if it is not there and cut to `length` bytes if that is given."""

    def __init__(self, path: Path, length: int | None = None) -> None:
        self._file = FileIO(path, "a")
        if length is not None:
            self._file.truncate(length)

    def append(self, content: bytes | memoryview) -> None:
        """Writes through to the system; `sync` makes it durable."""
        rest = memoryview(content).cast("B")
        while rest:
            rest = rest[self._file.write(rest) :]

    def sync(self) -> None:
        """Waits until what was appended would survive a loss of power."""
        os.fsync(self._file)

    def close(self) -> None:
        """Ends the appending."""
        self._file.close()


class Pack:
    """A pack to read from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        about = json.loads((path / "about.json").read_text(encoding="utf-8"))
        self.name, self.edge = str(about["name"]), int(about["edge"])
        self._pixels = os.open(path / "pixels.bin", os.O_RDONLY)
        weakref.finalize(self, os.close, self._pixels)

    def digests(self) -> Bytes:
        """(N, 16)."""
        return read_records(self.path / "digests.bin", DIGEST)

    def previews(self) -> Previews:
        """(N,) of `size` (2,), upright width and height of the whole image, and `thumbnail` (8, 8, 3)."""
        return read_records(self.path / "previews.bin", PREVIEW.itemsize).view(PREVIEW)[:, 0]

    def read_into(self, row: int, image: Bytes) -> None:
        """Reads an image into an array (S, S, 3).

        Raises:
            OSError: the file is damaged.
        """
        if os.preadv(self._pixels, [image.data], row * image.nbytes) != image.nbytes:
            raise OSError(f"{self.path / 'pixels.bin'}: image {row} is not there")


class PackWriter:
    """Appends to a pack, which is made if it is not there. One writer at a time; readers see what was committed."""

    def __init__(self, path: Path, edge: int, folder: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        digests = read_records(path / "digests.bin", DIGEST)
        # What a kill has left without a digest is written anew.
        self._pixels = Appender(path / "pixels.bin", len(digests) * edge * edge * 3)
        self._previews = Appender(path / "previews.bin", len(digests) * PREVIEW.itemsize)
        self._digests = Appender(path / "digests.bin", len(digests) * DIGEST)
        self._pending: list[bytes] = []
        about = path / "about.json"
        if not about.exists():  # what has none is not read
            facts = {"name": uuid.uuid4().hex, "folder": folder, "edge": edge, "rule": RULE}
            aside = about.with_suffix(".tmp")
            aside.write_text(json.dumps(facts), encoding="utf-8")
            aside.replace(about)

    def append(self, digest: bytes, shrunk: Shrunk, edge: int) -> None:
        """Adds an image; `commit` makes it known."""
        self._pixels.append(shrunk.pixels[edge].data)
        self._previews.append(np.array((shrunk.size, shrunk.thumbnail), PREVIEW).tobytes())
        self._pending.append(digest)

    def commit(self) -> None:
        """Makes known what was added: pixels first, so that a digest never stands without them."""
        self._pixels.sync()
        self._previews.sync()
        self._digests.append(b"".join(self._pending))
        self._digests.sync()
        self._pending.clear()

    def close(self) -> None:
        """Ends the writing; what was not committed is lost."""
        for appender in (self._pixels, self._previews, self._digests):
            appender.close()


@dataclass(frozen=True)
class Images:
    """N images of one edge: image i is number `rows[i]` of `packs[owners[i]]`, or nowhere if that is -1."""

    edge: int
    packs: Sequence[Pack]
    owners: Index
    rows: Index

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Index) -> Bytes:
        """Images (B, S, S, 3) by their positions (B,)."""
        images = np.empty((len(index), self.edge, self.edge, 3), np.uint8)
        for image, owner, row in zip(images, self.owners[index], self.rows[index], strict=True):
            self.packs[owner].read_into(int(row), image)
        return images

    def digests(self) -> Bytes:
        """(N, 16): hash of each file's bytes."""
        digests = np.empty((len(self), DIGEST), np.uint8)
        for number, pack in enumerate(self.packs):
            own = self.owners == number
            digests[own] = pack.digests()[self.rows[own]]
        return digests

    def previews(self) -> Previews:
        """(N,) of `size` (2,), upright width and height of the whole image, and `thumbnail` (8, 8, 3)."""
        previews = np.empty(len(self), PREVIEW)
        for number, pack in enumerate(self.packs):
            own = self.owners == number
            previews[own] = pack.previews()[self.rows[own]]
        return previews

    def subset(self, index: Index) -> Images:
        """Only the images at these positions."""
        return Images(self.edge, self.packs, self.owners[index], self.rows[index])

    def compact(self) -> Images:
        """The same, without packs that have none of them."""
        used, owners = np.unique(self.owners, return_inverse=True)
        return Images(self.edge, [self.packs[owner] for owner in used], owners, self.rows)

    def joined(self, other: Images) -> Images:
        """These images, and those of another after them."""
        owners = np.concatenate([self.owners, other.owners + len(self.packs)])
        return Images(self.edge, [*self.packs, *other.packs], owners, np.concatenate([self.rows, other.rows]))


def find_images(edge: int, packs: Sequence[Pack], digests: Bytes) -> Images:
    """The images of one edge whose files have these digests (N, 16)."""
    known = [pack.digests() for pack in packs]
    starts = np.cumsum([0, *(len(digests) for digests in known)])
    places = positions(digests, np.concatenate([*known, np.empty((0, DIGEST), np.uint8)]))
    owners = np.searchsorted(starts, places, side="right") - 1
    return Images(edge, packs, owners, np.where(places < 0, -1, places - starts[owners]))
