"""What is in the cache, and its removal."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from elta_tune.data.cache.index import CacheIndex, cache_errors
from elta_tune.data.cache.packs import PREVIEW
from elta_tune.errors import DataError
from elta_tune.locks import exclusive_lock, lock_of
from elta_tune.suggestions import did_you_mean

Place = TypeVar("Place")


@dataclass(frozen=True)
class Entry:
    """A part of the cache that can be removed: `key` names it, `used` is when it last was, in seconds since 1970.

    `folder` is where its images are from, `edge` their size in pixels, `backbone` what made the features that it holds
    instead. All are None of what an older version has left.
    """

    key: str
    folder: str | None
    edge: int | None
    images: int
    bytes: int
    used: float
    backbone: str | None = None


def list_entries(root: Path, index: CacheIndex) -> list[Entry]:
    """All parts of a cache, the last used first."""
    with cache_errors(root, "the image cache can't be read"):
        entries = [
            *_existing(lambda row: _pack(index, *row), index.query("SELECT name, edge, folder, images FROM packs")),
            *_existing(_older, (path for path in root.glob("pixels-*") if path != index.path)),
            *_existing(_demo, root.glob("demo-*")),
            *_existing(_features, root.glob("features-*")),
        ]
    return sorted(entries, key=lambda entry: (-entry.used, entry.key))


def remove_entry(root: Path, index: CacheIndex, key: str) -> Entry:
    """Removes a part of the cache.

    Raises:
        DataError: the part does not exist, is being written, or can't be removed.
    """
    entries = {entry.key: entry for entry in list_entries(root, index)}
    if key not in entries:
        raise DataError(f"there is no {key!r} in {root}{did_you_mean(key, entries)}", "see: elta-tune data cache")
    with cache_errors(root / key, "can't be removed"), index.exclusive_lock(_refuse_to_wait):
        packs = index.query("SELECT id FROM packs WHERE name = ?", key)
        if packs:
            index.drop_packs(packs)
        else:
            _remove_folder(root / key)
        _sweep(root, index)
    return entries[key]


def _refuse_to_wait() -> None:
    raise DataError("the cache is being written by another run; try again when that is done")


def _remove_folder(path: Path) -> None:
    with exclusive_lock(lock_of(path)):
        removed = path.with_name(f".removed-{path.name}")
        path.rename(removed)  # at once, for other processes
        shutil.rmtree(removed)
        lock_of(path).unlink()


def _sweep(root: Path, index: CacheIndex) -> None:
    """Removes packs that the index does not name any more, and what a kill has left of earlier removals."""
    index.remove_unnamed_packs()
    for path in root.glob(".removed-*"):
        shutil.rmtree(path)
    if not index.query("SELECT 1 FROM packs LIMIT 1"):
        index.clear()
        shutil.rmtree(index.path / "in-use", ignore_errors=True)


def _existing(entry: Callable[[Place], Entry], places: Iterable[Place]) -> Iterator[Entry]:
    """Entries of places, without those that another process removes meanwhile."""
    for place in places:
        with contextlib.suppress(FileNotFoundError):
            yield entry(place)


def _pack(index: CacheIndex, name: str, edge: int, folder: bytes, images: int) -> Entry:
    path = index.path / name
    return Entry(name, os.fsdecode(folder), edge, images, _size(path), path.stat().st_mtime)


def _older(path: Path) -> Entry:
    """The packs of another rule of decoding, or of a version with another index."""
    packs = [file.stat() for file in path.glob("*/previews.bin")]
    used = max((pack.st_mtime for pack in packs), default=path.stat().st_mtime)
    return Entry(path.name, None, None, sum(pack.st_size // PREVIEW.itemsize for pack in packs), _size(path), used)


def _demo(path: Path) -> Entry:
    images = path / "images"
    return Entry(path.name, str(images), None, sum(1 for _ in images.glob("*")), _size(path), path.stat().st_mtime)


def _features(path: Path) -> Entry:
    """Those of a frozen backbone, as a training writes them."""
    rows = len(np.load(path / "features.npy", mmap_mode="r"))
    about = path / "about.json"
    facts = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {"edge": None, "backbone": None}
    used = (about if about.exists() else path).stat().st_mtime
    return Entry(path.name, None, facts["edge"], rows, _size(path), used, facts["backbone"])


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size
