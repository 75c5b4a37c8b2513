"""What a split was made of when its study began: its trials take that, without a look at each file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.packs import DIGEST, Images, Index
from elta_tune.data.shelf import Shelf, open_pack


@dataclass(frozen=True)
class Snapshot:
    """The images of a split: `rows` (M,) of its ratings have `images` (M); `left_out` is why others have none."""

    rows: Index
    images: Mapping[int, Images]
    left_out: tuple[tuple[str, str], ...]


def write_snapshot(shelf: Shelf, folder: str, ids: NDArray[np.object_], snapshot: Snapshot) -> None:
    """Keeps what was found of some ids in a folder of images; a cache that can't be written keeps nothing."""
    names = {edge: [[pack.path.name, pack.name] for pack in part.packs] for edge, part in snapshot.images.items()}
    facts = json.dumps({"left_out": snapshot.left_out, "packs": names})
    arrays: dict[str, Any] = {"rows": snapshot.rows, "facts": np.frombuffer(facts.encode(), np.uint8)}
    for edge, part in snapshot.images.items():
        arrays |= {f"owners_{edge}": part.owners, f"rows_{edge}": part.rows}
    file = _file(shelf, folder, ids, list(snapshot.images))
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}")
        with aside.open("wb") as stream:
            np.savez(stream, **arrays)
        aside.replace(file)


def read_snapshot(shelf: Shelf, folder: str, ids: NDArray[np.object_], edges: Sequence[int]) -> Snapshot | None:
    """What was found of some ids in a folder of images, or None where nothing was, or images were removed since."""
    file = _file(shelf, folder, ids, edges)
    if not file.exists():
        return None
    with np.load(file) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        images = {}
        for edge, names in ((int(edge), names) for edge, names in facts["packs"].items()):
            packs = [pack for path, name in names if (pack := open_pack(shelf.path / path)) and pack.name == name]
            if len(packs) < len(names):
                return None
            images[edge] = Images(edge, packs, arrays[f"owners_{edge}"], arrays[f"rows_{edge}"])
        return Snapshot(arrays["rows"], images, tuple((name, reason) for name, reason in facts["left_out"]))


def _file(shelf: Shelf, folder: str, ids: NDArray[np.object_], edges: Sequence[int]) -> Path:
    key = "\0".join([folder, *map(str, sorted(set(edges))), "", *ids])
    return shelf.path / "snapshots" / f"{hashlib.blake2b(key.encode(), digest_size=DIGEST).hexdigest()}.npz"
