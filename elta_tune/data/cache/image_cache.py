"""The cache: every image decoded once, resized, for all trials of all studies.

Images are found by the digest of their file's bytes, whichever folder, list, split or study asks for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from elta_tune.data.cache.builder import build
from elta_tune.data.cache.index import CacheIndex, cache_errors
from elta_tune.data.cache.inventory import Entry, list_entries, remove_entry
from elta_tune.data.cache.packs import DIGEST, Bytes, Images, Index, Previews
from elta_tune.data.cache.progress import Progress, size_text
from elta_tune.data.cache.snapshots import LeftOut, Snapshot, read_snapshot, record_snapshot
from elta_tune.errors import DataError


@dataclass(frozen=True)
class CachedImages:
    """What the cache has of N files.

    `digests` (N, 16) of their bytes, 0 where they are not known; `images` (N) by their edge; `unreadable` says why, by
    the file's position.
    """

    files: Sequence[str]
    digests: Bytes
    images: Mapping[int, Images]
    unreadable: Mapping[int, str]

    @property
    def decoded(self) -> Index:
        """The files (M,) that are decoded at every edge."""
        return np.flatnonzero(np.min([images.rows for images in self.images.values()], axis=0) >= 0)

    def previews(self) -> Previews:
        """Size and thumbnail of the decoded ones, (M,)."""
        return next(iter(self.images.values())).subset(self.decoded).previews()

    @property
    def missing(self) -> Index:
        """The files (M,) that are still to be decoded."""
        missing = np.ones(len(self.files), bool)
        missing[self.decoded] = False
        missing[list(self.unreadable)] = False
        return np.flatnonzero(missing)

    @property
    def missing_bytes(self) -> int:
        """What decoding them takes on disk, at most: some may be in the cache under another path."""
        missing = self.missing
        return sum(int((images.rows[missing] < 0).sum()) * edge**2 * 3 for edge, images in self.images.items())


@dataclass(frozen=True)
class ImageCache:
    """The cache in a folder, which need not exist. It has no open files: other processes may get copies."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.absolute())  # the working directory may change later

    @cached_property
    def _index(self) -> CacheIndex:
        return CacheIndex(self.root)

    def look_up(self, files: Sequence[str], edges: Sequence[int]) -> CachedImages:
        """What the cache has of some files, without decoding any.

        Raises:
            DataError: it can't be read.
        """
        with cache_errors(self.root, "the image cache can't be read"):
            digests = self._index.digests(files)
            return CachedImages(files, digests, self._index.images(digests, edges), self._index.reasons(digests))

    def complete(self, cached: CachedImages, progress: Progress, what: str) -> CachedImages:
        """Decodes what is missing. Two processes that ask at once decode it once.

        Raises:
            DataError: the cache can't be written.
        """
        failed: dict[int, str] = {}
        if len(cached.missing):
            files, edges = cached.files, list(cached.images)
            with (
                cache_errors(self._index.path, "the image cache can't be written"),
                self._index.exclusive_lock(lambda: progress(0, len(files), f"waiting for another run, then {what}")),
            ):
                failed = self._decode_missing(self.look_up(files, edges), progress, what)
            cached = self.look_up(files, edges)
            failed = {int(index): failed.get(int(index), "it changed while it was read") for index in cached.missing}
        _mark_used(cached)
        return replace(cached, unreadable={**cached.unreadable, **failed})

    def _decode_missing(self, cached: CachedImages, progress: Progress, what: str) -> dict[int, str]:
        missing, total = cached.missing, len(cached.files)
        if not len(missing):  # another run was faster
            return {}
        what = f"{what} ({size_text(cached.missing_bytes)})"
        files = [cached.files[index] for index in missing]
        edges = [edge for edge, images in cached.images.items() if (images.rows[missing] < 0).any()]
        failed = build(self._index, files, edges, lambda done: progress(total - len(files) + done, total, what))
        return {int(missing[index]): reason for index, reason in failed.items()}

    def refuse_too_large(
        self, parts: Sequence[CachedImages], limit: int | None, progress: Progress
    ) -> Sequence[CachedImages]:
        """The same parts, once it is sure that there is room for what they miss.

        Args:
            limit: bytes that decoding may take; the disk's free bytes bound it, too.

        Raises:
            DataError: says how much it would take.
        """
        free = self.free_bytes
        allowed = free if limit is None else min(free, limit)
        edges = {edge for part in parts for edge in part.images}
        if 0 < _missing_bytes(parts) - allowed <= self._index.bytes_at(edges):
            # What was moved or copied may be in the cache already: the bytes of the files show it.
            parts = [self._compare(part, progress) for part in parts]
        if (needed := _missing_bytes(parts)) > allowed:
            bound = f"{size_text(allowed)} allowed"
            if allowed == free:
                bound = f"{size_text(free)} that are free in {self.root}"
            raise DataError(
                f"decoding takes {size_text(needed)} on disk, more than the {bound}",
                "use another disk: `cache=FOLDER`, or ELTA_TUNE_CACHE; or remove what is not needed: "
                "elta-tune data cache",
            )
        return parts

    def _compare(self, part: CachedImages, progress: Progress) -> CachedImages:
        files = [part.files[index] for index in part.missing]
        with self._index.exclusive_lock(lambda: None):
            build(self._index, files, (), lambda done: progress(done, len(files), "comparing images with the cache"))
        return self.look_up(part.files, list(part.images))

    @property
    def free_bytes(self) -> int:
        """What is free on the disk of the cache, whether it exists or not."""
        return shutil.disk_usage(next(path for path in (self.root, *self.root.parents) if path.exists())).free

    def record(self, key: bytes, cached: CachedImages, rows: Index, left_out: LeftOut, folder: str) -> Snapshot:
        """Records the decoded ones of some files as the snapshot of a split.

        Args:
            rows: (N,) of the files in the split's list.
            folder: of the images, for the message.

        Raises:
            DataError: another run, still in progress, started with other images under this key.
        """
        decoded = cached.decoded
        images = {edge: images.subset(decoded) for edge, images in cached.images.items()}
        snapshot = Snapshot(rows[decoded], images, left_out)
        record_snapshot(self._index, key, snapshot, folder)
        return snapshot

    def snapshot(self, key: bytes) -> Snapshot | None:
        """The recorded snapshot of a split, or None if there is none, or some of its images were removed since.

        Raises:
            DataError: the cache can't be read.
        """
        with cache_errors(self.root, "the image cache can't be read"):
            return read_snapshot(self._index, key)

    def get_or_compute(self, key: bytes, compute: Callable[[], Index]) -> Index:
        """Numbers (N,) that were computed for a key, or are computed now; a key of any length names their kind, too."""
        key = hashlib.blake2b(key, digest_size=DIGEST).digest()
        with contextlib.suppress(OSError, sqlite3.Error):
            for (known,) in self._index.query("SELECT value FROM computed WHERE key = ?", key):
                return np.frombuffer(known, np.int64)
        value = compute()
        with contextlib.suppress(OSError, sqlite3.Error):  # else it is computed again the next time
            self._index.change(("INSERT OR REPLACE INTO computed VALUES (?, ?)", [(key, value.tobytes())]))
        return value

    def entries(self) -> list[Entry]:
        """All parts of the cache, the last used first."""
        return list_entries(self.root, self._index)

    def remove(self, key: str) -> Entry:
        """Removes a part of the cache. Running trials keep what they have open; what is needed is decoded again.

        Raises:
            DataError: the part does not exist, is being written, or can't be removed.
        """
        return remove_entry(self.root, self._index, key)


def _missing_bytes(parts: Sequence[CachedImages]) -> int:
    return sum(part.missing_bytes for part in parts)


def _mark_used(cached: CachedImages) -> None:
    for images in cached.images.values():
        for owner in np.unique(images.owners[images.rows >= 0]):
            with contextlib.suppress(OSError):  # nice to know, no more
                os.utime(images.packs[owner].path)
