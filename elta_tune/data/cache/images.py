"""The cache: every image decoded once, resized, for all trials of all studies.

Images are found by the digest of their file's bytes, whichever folder, list, split or study asks for them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from elta_tune.data.cache.builder import build
from elta_tune.data.cache.index import Shelf
from elta_tune.data.cache.packs import Bytes, Images, Index, Previews, find_images
from elta_tune.errors import DataError

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


def no_progress(done: int, total: int, what: str) -> None:
    """Shows nothing."""


@dataclass(frozen=True)
class CachedImages:
    """What the cache has of N files.

    `digests` (N, 16) of their bytes, 0 where they are not known; `images` (N) by their edge; `unreadable` says why, by
    the file's index.
    """

    files: Sequence[str]
    digests: Bytes
    images: Mapping[int, Images]
    unreadable: Mapping[int, str]

    @property
    def decoded(self) -> Index:
        """The files (M,) that are there at every edge."""
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
        """What decoding them takes on disk, at most: some may be there under another path."""
        missing = self.missing
        return sum(int((images.rows[missing] < 0).sum()) * edge**2 * 3 for edge, images in self.images.items())


def look_up(root: Path, files: Sequence[str], edges: Sequence[int]) -> CachedImages:
    """What the cache has of some files, without decoding any.

    Raises:
        DataError: it can't be read.
    """
    shelf = Shelf(root)
    try:
        digests = shelf.digests(files)
        images = {edge: find_images(edge, shelf.packs(edge), digests) for edge in edges}
        return CachedImages(files, digests, images, shelf.reasons(digests))
    except OSError as error:
        raise DataError(f"{root}: the image cache can't be read: {error.strerror or error}") from error


def complete(root: Path, cached: CachedImages, progress: Progress, what: str) -> CachedImages:
    """Decodes what is missing. Two processes that ask at once decode it once.

    Raises:
        DataError: the cache can't be written.
    """
    failed: dict[int, str] = {}
    if len(cached.missing):
        shelf, files, edges = Shelf(root), cached.files, list(cached.images)
        try:
            with shelf.lock(lambda: progress(0, len(files), f"waiting for another run, then {what}")):
                failed = _decode_missing(shelf, look_up(root, files, edges), progress, what)
        except OSError as error:
            raise DataError(f"{shelf.path}: the image cache can't be written: {error.strerror or error}") from error
        cached = look_up(root, files, edges)
        failed = {int(index): failed.get(int(index), "it changed while it was read") for index in cached.missing}
    _mark_used(cached)
    return replace(cached, unreadable={**cached.unreadable, **failed})


def find_room(
    root: Path, parts: Sequence[CachedImages], limit: int | None, progress: Progress
) -> Sequence[CachedImages]:
    """The same parts, once it is sure that there is room for what they miss.

    Args:
        limit: bytes that decoding may take, beside what is free on the disk.

    Raises:
        DataError: says how much it would take.
    """
    shelf = Shelf(root)
    free = free_bytes(root)
    allowed = free if limit is None else min(free, limit)
    if 0 < _missing_bytes(parts) - allowed <= _cached_bytes(shelf, {edge for part in parts for edge in part.images}):
        # What was moved or copied may be there already: the bytes of the files tell.
        parts = [_compare(shelf, root, part, progress) for part in parts]
    if (needed := _missing_bytes(parts)) > allowed:
        bound = f"{size_text(allowed)} allowed" if allowed < free else f"{size_text(free)} that are free in {root}"
        raise DataError(
            f"decoding takes {size_text(needed)} on disk, more than the {bound}",
            "take another disk: `cache=FOLDER`, or ELTA_TUNE_CACHE; or remove what is not needed: elta-tune data cache",
        )
    return parts


def free_bytes(root: Path) -> int:
    """What is free on the disk of a cache, whether it is there or not."""
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def _missing_bytes(parts: Sequence[CachedImages]) -> int:
    return sum(part.missing_bytes for part in parts)


def _cached_bytes(shelf: Shelf, edges: Iterable[int]) -> int:
    return sum(len(pack.digests()) * edge**2 * 3 for edge in edges for pack in shelf.packs(edge))


def _compare(shelf: Shelf, root: Path, part: CachedImages, progress: Progress) -> CachedImages:
    files = [part.files[index] for index in part.missing]
    with shelf.lock(lambda: None):
        build(shelf, files, (), lambda done: progress(done, len(files), "comparing images with the cache"))
    return look_up(root, part.files, list(part.images))


def _decode_missing(shelf: Shelf, cached: CachedImages, progress: Progress, what: str) -> dict[int, str]:
    missing, total = cached.missing, len(cached.files)
    if not len(missing):  # another run was faster
        return {}
    what = f"{what} ({size_text(cached.missing_bytes)})"
    files = [cached.files[index] for index in missing]
    edges = [edge for edge, images in cached.images.items() if (images.rows[missing] < 0).any()]
    failed = build(shelf, files, edges, lambda done: progress(total - len(files) + done, total, what))
    return {int(missing[index]): reason for index, reason in failed.items()}


def _mark_used(cached: CachedImages) -> None:
    for images in cached.images.values():
        for owner in np.unique(images.owners[images.rows >= 0]):
            with contextlib.suppress(OSError):  # nice to know, no more
                os.utime(images.packs[owner].path / "about.json")


def size_text(count: float) -> str:
    """``69.0 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
