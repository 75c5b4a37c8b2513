"""The cache: every image decoded once, resized, for all trials of all studies.

    CACHE/pixels-<rule>/
    ├── files.bin          what stood in a file of that path, length and time: the digest of its bytes
    ├── unreadable.txt     why bytes of a digest are no image
    ├── 300-<folder>/      a pack of decoded images for each edge and folder of images
    └── lock               held by the one process that appends

Images are found by the digest of their file's bytes, whichever folder, list, split or study asks for them. Everything
is appended and named last, so that a build that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elta_tune.data.decoding import RULE, Shrunk, careful, shrink
from elta_tune.data.packs import DIGEST, Appender, Bytes, Images, Index, Pack, PackWriter, find_images, positions
from elta_tune.data.packs import read_records
from elta_tune.errors import DataError

FILE = 2 * DIGEST + 16
"""Bytes of a record of `files.bin`: hash of the path, length, time of change, digest."""
COMMIT_IMAGES, COMMIT_SECONDS = 256, 5.0
"""How much a kill may cost."""
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


@dataclass(frozen=True)
class CachedImages:
    """What the cache knows of N files.

    `digests` (N, 16) of their bytes, 0 where a file can't be read; `images` (N) by their edge; `unreadable`: why, by the
    file's index.
    """

    files: Sequence[Path]
    digests: Bytes
    images: Mapping[int, Images]
    unreadable: Mapping[int, str]

    @property
    def decoded(self) -> Index:
        """The files (M,) whose images are there at each edge."""
        rows = [images.rows for images in self.images.values()]
        return np.flatnonzero(np.min(rows, axis=0) >= 0)

    @property
    def missing(self) -> Index:
        """The files (M,) of which nothing is known yet."""
        missing = np.ones(len(self.files), bool)
        missing[self.decoded] = False
        missing[list(self.unreadable)] = False
        return np.flatnonzero(missing)

    @property
    def missing_bytes(self) -> int:
        """Size of what has to be written, at most."""
        wanted = (int((images.rows[self.missing] < 0).sum()) * edge**2 * 3 for edge, images in self.images.items())
        return sum(wanted)


def open_cache(
    root: Path, files: Sequence[Path], sizes: Sequence[int], progress: Progress, what: str, *, check: bool = True
) -> CachedImages:
    """The decoded images of some files; what is not there is decoded. Two processes that ask at once decode it once.

    Args:
        check: whether a file that is known may have changed since. Trials take what their study began with.

    Raises:
        DataError: the cache can't be written.
    """
    shelf = Shelf(root)
    cached = shelf.find(files, sizes, check)
    if not len(cached.missing):
        shelf.touch(cached)
        return cached
    try:
        with shelf.lock(lambda: progress(0, len(files), f"another run is decoding; waiting before {what}")):
            cached = shelf.find(files, sizes, check)
            failed = shelf.build(cached, progress, what) if len(cached.missing) else {}
    except OSError as error:
        raise DataError(f"{shelf.path}: the image cache can't be written: {error.strerror or error}") from error
    cached = shelf.find(files, sizes, check)
    return CachedImages(files, cached.digests, cached.images, {**failed, **cached.unreadable})
