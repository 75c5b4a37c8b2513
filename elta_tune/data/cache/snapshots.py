"""What a split was made of when its study began: its trials use that, without a look at each file."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elta_tune.data.cache.index import CacheIndex, as_digests
from elta_tune.data.cache.packs import Images, Index
from elta_tune.errors import DataError

LeftOut = tuple[tuple[str, str], ...]
"""Ids of images, and why each can't be used."""


@dataclass(frozen=True)
class Snapshot:
    """The images of a split: `rows` (M,) of its list have `images` (M); `left_out` is why others have none."""

    rows: Index
    images: Mapping[int, Images]
    left_out: LeftOut


_in_use: dict[Path, int] = {}
"""Locks (open files) of the snapshots that this process has recorded: held, shared, until it ends."""


def record_snapshot(index: CacheIndex, key: bytes, snapshot: Snapshot, folder: str) -> None:
    """Records the images of a split; a cache that can't be written records nothing.

    While this process lives, no other one can record other images under the key: the trials of a study see the same.

    Args:
        folder: of the images, for the message.

    Raises:
        DataError: another run, still in progress, started with other images.
    """
    digests = next(iter(snapshot.images.values())).digests.tobytes()
    content = (snapshot.rows.tobytes(), digests, json.dumps(snapshot.left_out))
    lock = index.path / "in-use" / f"{key.hex()}.lock"
    with contextlib.suppress(OSError, sqlite3.Error):
        if not _lock_for_writing(lock) and _recorded(index, key) != content:
            raise DataError(
                f"{folder}: images have changed since another run, still in progress, started with them",
                "wait until it has ended, or give this one a cache of its own: `cache=FOLDER`",
            )
        images = [
            (key, edge, json.dumps([pack.path.name for pack in part.packs]), part.owners.tobytes(), part.rows.tobytes())
            for edge, part in snapshot.images.items()
        ]
        index.change(
            ("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", [(key, *content)]),
            ("INSERT OR REPLACE INTO snapshot_images VALUES (?, ?, ?, ?, ?)", images),
        )
        fcntl.flock(_in_use[lock], fcntl.LOCK_SH)


def _lock_for_writing(file: Path) -> bool:
    """Locks a snapshot: exclusively, or shared with other processes that use it."""
    if (earlier := _in_use.pop(file, None)) is not None:
        os.close(earlier)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _in_use[file] = os.open(file, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return False
    return True


def _recorded(index: CacheIndex, key: bytes) -> tuple[bytes, bytes, str] | None:
    """Rows, digests and what is left out of a snapshot."""
    found = index.query("SELECT rows, digests, left_out FROM snapshots WHERE key = ?", key)
    return found[0] if found else None


def read_snapshot(index: CacheIndex, key: bytes) -> Snapshot | None:
    """A recorded snapshot, or None if there is none, or some of its images were removed since."""
    columns = "rows, digests, left_out, edge, packs, owners, places"
    parts = index.query(f"SELECT {columns} FROM snapshots JOIN snapshot_images USING (key) WHERE key = ?", key)
    images = {}
    for _, digests, _, edge, names, owners, places in parts:
        packs = [index.open_pack(name) for name in json.loads(names)]
        present = [pack for pack in packs if pack is not None]
        if len(present) < len(packs):
            return None
        images[edge] = Images(edge, present, _numbers(owners), _numbers(places), as_digests(digests))
    if not parts:
        return None
    rows, _, left_out, *_ = parts[0]
    return Snapshot(_numbers(rows), images, tuple((name, reason) for name, reason in json.loads(left_out)))


def _numbers(content: bytes) -> Index:
    return np.frombuffer(content, np.int64)
