"""What is in the cache, and its removal."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elta_tune.data.cache.index import Shelf
from elta_tune.data.cache.packs import DIGEST
from elta_tune.errors import DataError
from elta_tune.locks import exclusive_lock, lock_of
from elta_tune.suggestions import did_you_mean


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


def list_entries(root: Path) -> list[Entry]:
    """All parts of a cache, the last used first."""
    current = Shelf(root).path
    entries = _packs(current)
    for path in root.glob("pixels-*"):
        if path != current:
            packs = _packs(path)
            used = max((pack.used for pack in packs), default=_changed(path))
            entries.append(Entry(path.name, None, None, sum(pack.images for pack in packs), _size(path), used))
    for path in root.glob("demo-*"):
        images = path / "images"
        count = sum(1 for _ in images.glob("*"))
        entries.append(Entry(path.name, str(images), None, count, _size(path), _changed(path)))
    entries += _present(_features, root.glob("features-*"))
    return sorted(entries, key=lambda entry: (-entry.used, entry.key))


def remove_entry(root: Path, key: str) -> Entry:
    """Removes a part of the cache. Trials that run keep what they have open; what is needed again is decoded again.

    Raises:
        DataError: there is no such part, it is being written, or it can't be removed.
    """
    entries = {entry.key: entry for entry in list_entries(root)}
    if key not in entries:
        raise DataError(f"there is no {key!r} in {root}{did_you_mean(key, entries)}", "see: elta-tune data cache")
    shelf = Shelf(root)
    path = shelf.path / key if (shelf.path / key).exists() else root / key
    try:
        with shelf.lock(_refuse_waiting):
            _sweep(shelf.path, root)
            with exclusive_lock(lock_of(path)):
                aside = path.with_name(f".removed-{path.name}")
                path.rename(aside)  # at once, for whoever looks
                shutil.rmtree(aside)
                lock_of(path).unlink()
            if not _packs(shelf.path):
                shelf.forget()
    except OSError as error:
        raise DataError(f"{path}: can't be removed: {error.strerror or error}") from error
    return entries[key]


def _sweep(*folders: Path) -> None:
    """Removes what a kill has left of earlier removals."""
    for folder in folders:
        for path in folder.glob(".removed-*"):
            shutil.rmtree(path)


def _refuse_waiting() -> None:
    raise DataError("the cache is being written by another run; try again when that is done")


def _packs(shelf: Path) -> list[Entry]:
    return _present(_pack, (about.parent for about in shelf.glob("[0-9]*/about.json")))


def _present(entry: Callable[[Path], Entry], paths: Iterable[Path]) -> list[Entry]:
    """Entries of folders, without those that another process removes meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(entry(path))
    return found


def _pack(path: Path) -> Entry:
    about = path / "about.json"
    facts = json.loads(about.read_text(encoding="utf-8"))
    images = (path / "digests.bin").stat().st_size // DIGEST
    return Entry(path.name, facts["folder"], facts["edge"], images, _size(path), about.stat().st_mtime)


def _features(path: Path) -> Entry:
    """Those of a frozen backbone, as a training keeps them."""
    rows = len(np.load(path / "features.npy", mmap_mode="r"))
    about = path / "about.json"
    facts = json.loads(about.read_text(encoding="utf-8")) if about.exists() else {"edge": None, "backbone": None}
    used = _changed(about) or _changed(path)
    return Entry(path.name, None, facts["edge"], rows, _size(path), used, facts["backbone"])


def _size(path: Path) -> int:
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size


def _changed(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
