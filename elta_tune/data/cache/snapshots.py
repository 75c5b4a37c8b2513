"""What a split was made of when its study began: its trials take that, without a look at each file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.cache.index import TORN, Shelf, open_pack, whole_file
from elta_tune.data.cache.packs import DIGEST, Bytes, Images, Index
from elta_tune.data.readers import id_bytes
from elta_tune.errors import DataError


@dataclass(frozen=True)
class Snapshot:
    """The images of a split: `rows` (M,) of its ratings have `images` (M); `left_out` is why others have none."""

    rows: Index
    images: Mapping[int, Images]
    left_out: tuple[tuple[str, str], ...]


_in_use: dict[Path, int] = {}
"""Locks (open files) of the snapshots that this process has written: held, shared, until it ends."""


def write_snapshot(shelf: Shelf, folder: str, ids: NDArray[np.object_], digests: Bytes, snapshot: Snapshot) -> None:
    """Keeps what was found of some ids in a folder of images; a cache that can't be written keeps nothing.

    While this process lives, no other one can keep other images for them: the trials of a study see the same ones.

    Args:
        digests: (M, 16) of the bytes of the images.

    Raises:
        DataError: another run, which still goes on, began with other images.
    """
    file = _file(shelf, folder, ids, list(snapshot.images))
    left_out = json.dumps(snapshot.left_out)
    parts = (snapshot.rows.tobytes(), digests.tobytes(), left_out.encode())
    content = hashlib.blake2b(b"".join(parts), digest_size=DIGEST).hexdigest()
    with contextlib.suppress(OSError):
        if not _may_write(file) and _read_facts(file).get("content") != content:
            raise DataError(
                f"{folder}: images have changed since a run that still goes on began with them",
                "wait until it has ended, or give this one a cache of its own: `cache=FOLDER`",
            )
        names = {edge: [[pack.path.name, pack.name] for pack in part.packs] for edge, part in snapshot.images.items()}
        facts = json.dumps({"left_out": snapshot.left_out, "packs": names, "content": content})
        arrays: dict[str, Any] = {"rows": snapshot.rows, "facts": np.frombuffer(facts.encode(), np.uint8)}
        for edge, part in snapshot.images.items():
            arrays |= {f"owners_{edge}": part.owners, f"rows_{edge}": part.rows}
        with whole_file(file) as stream:
            np.savez(stream, **arrays)
        fcntl.flock(_in_use[file], fcntl.LOCK_SH)


def _may_write(file: Path) -> bool:
    """Locks a snapshot: for this process alone or, where others have it in use, together with them."""
    if (earlier := _in_use.pop(file, None)) is not None:
        os.close(earlier)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _in_use[file] = os.open(file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)
        return False
    return True


def _read_facts(file: Path) -> dict[str, Any]:
    with contextlib.suppress(*TORN), file.open("rb") as stream, np.load(stream) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        return facts
    return {}


def read_snapshot(shelf: Shelf, folder: str, ids: NDArray[np.object_], edges: Sequence[int]) -> Snapshot | None:
    """What was found of some ids in a folder of images, or None where nothing was, or images were removed since."""
    file = _file(shelf, folder, ids, edges)
    with contextlib.suppress(*TORN), file.open("rb") as stream, np.load(stream) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        images = {}
        for edge, names in ((int(edge), names) for edge, names in facts["packs"].items()):
            packs = [pack for path, name in names if (pack := open_pack(shelf.path / path)) and pack.name == name]
            if len(packs) < len(names):
                return None
            images[edge] = Images(edge, packs, arrays[f"owners_{edge}"], arrays[f"rows_{edge}"])
        return Snapshot(arrays["rows"], images, tuple((name, reason) for name, reason in facts["left_out"]))
    return None


def _file(shelf: Shelf, folder: str, ids: NDArray[np.object_], edges: Sequence[int]) -> Path:
    key = "\0".join([folder, *map(str, sorted(set(edges))), "", *ids])
    return shelf.path / "snapshots" / f"{hashlib.blake2b(id_bytes(key), digest_size=DIGEST).hexdigest()}.npz"
