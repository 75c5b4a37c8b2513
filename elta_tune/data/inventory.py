"""What is in the cache, and its removal."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from elta_tune.data.packs import DIGEST
from elta_tune.data.shelf import Shelf
from elta_tune.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """A part of the cache that can be removed: `key` names it, `used` is when it last was, in seconds since 1970.

    `folder` is where its images are from, `edge` their size in pixels; both are None of what an older version has left.
    """

    key: str
    folder: str | None
    edge: int | None
    images: int
    bytes: int
    used: float


def list_entries(root: Path) -> list[Entry]:
    """All parts of a cache, the last used first."""
    current = Shelf(root).path
    entries = [_pack(about.parent) for about in current.glob("[0-9]*/about.json")]
    for path in root.glob("pixels-*"):
        if path != current:
            packs = [_pack(about.parent) for about in path.glob("[0-9]*/about.json")]
            used = max((pack.used for pack in packs), default=path.stat().st_mtime)
            entries.append(Entry(path.name, None, None, sum(pack.images for pack in packs), _size(path), used))
    for path in root.glob("demo-*"):
        images = path / "images"
        count = sum(1 for _ in images.iterdir())
        entries.append(Entry(path.name, str(images), None, count, _size(path), path.stat().st_mtime))
    return sorted(entries, key=lambda entry: (-entry.used, entry.key))


def remove_entry(root: Path, key: str) -> Entry:
    """Removes a part of the cache. Trials that run keep what they have open; what is needed again is decoded again.

    Raises:
        DataError: there is no such part, or it is being written.
    """
    entries = {entry.key: entry for entry in list_entries(root)}
    if key not in entries:
        raise DataError(
            f"there is no {key!r} in {root}{did_you_mean(key, entries)}", "see: elta-tune data cache --list"
        )
    shelf = Shelf(root)
    path = next(path for path in (shelf.path / key, root / key) if path.exists())
    with shelf.lock(_refuse_waiting):
        aside = path.with_name(f".removed-{path.name}")
        path.rename(aside)  # at once, for whoever looks
        shutil.rmtree(aside)
    return entries[key]


def _refuse_waiting() -> None:
    raise DataError("the cache is being written by another run; try again when that is done")


def _pack(path: Path) -> Entry:
    about = path / "about.json"
    facts = json.loads(about.read_text(encoding="utf-8"))
    images = (path / "digests.bin").stat().st_size // DIGEST
    return Entry(path.name, facts["folder"], facts["edge"], images, _size(path), about.stat().st_mtime)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
