"""Duplicate images, in one split or in two: by id, file, bytes or pixels."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import scipy  # its parts load when first used
from numpy.typing import NDArray

from elta_tune.cores import available_cores
from elta_tune.data.cache.decoding import decode, read_content, strict_decoding
from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.cache.packs import DIGEST, Bytes, Index, Previews
from elta_tune.errors import DataError

NEAR = 1.0
"""Mean difference of two thumbnails, in grey levels, up to which the images themselves are compared."""


@dataclass(frozen=True)
class Member:
    """A split in the search: `ids` (N,) of its images, and those themselves unless only labels are looked at."""

    name: str
    file: Path
    ids: NDArray[np.object_]
    cached: CachedImages | None = None


@dataclass(frozen=True)
class Shared:
    """An image of `first` that is also in `second`, which may be the same.

    `is_of_many`: more of a held-out split than is allowed is in the training images, under other names.
    """

    first: Member
    second: Member
    ids: tuple[str, str]
    how: str
    is_of_many: bool = False

    @property
    def is_leak(self) -> bool:
        """Whether a model would be judged by what it was trained on, or two files can't both be right.

        The pool must share nothing with validation or test. Labelled splits must share no id and no file; the same
        content in two files is only a warning, since AVA itself has such pairs, unless there are many.
        """
        names = {self.first.name, self.second.name}
        is_refused = self.how in ("id", "file") or ("pool" in names and bool(names & {"val", "test"}))
        return len(names) == 2 and (is_refused or self.is_of_many)

    def __str__(self) -> str:
        where = "there" if self.first is self.second else f"in {self.second.file}"
        return f"{self.first.file}: {self.ids[0]!r} is also {where} as {self.ids[1]!r} (the same {self.how})"


def find_shared(members: Sequence[Member], cache: ImageCache, allowed: float) -> list[Shared]:
    """Each duplicate image once, by the simplest criterion that it meets.

    Args:
        allowed: share of a held-out split whose content may be in the training images under other names.
    """
    keys = [
        {"id": member.ids.tolist(), **contents}
        for member, contents in zip(members, _contents(members, cache), strict=True)
    ]
    found = []
    for one, other in itertools.combinations_with_replacement(range(len(members)), 2):
        # The pool is named first: it is the file to fix.
        first, second = (other, one) if members[other].name == "pool" else (one, other)
        seen: set[int] = set()
        for how, own in keys[first].items():
            for a, b in _repeated(own) if first == second else _same(own, keys[second][how]):
                if a not in seen:
                    seen.add(a)
                    ids = (str(members[first].ids[a]), str(members[second].ids[b]))
                    found.append(Shared(members[first], members[second], ids, how))
    return _mark_many(found, allowed)


def _mark_many(shared: Sequence[Shared], allowed: float) -> list[Shared]:
    copies: dict[str, set[str]] = {}
    for item in shared:
        if item.first.name == "train" and item.second.name in ("val", "test"):
            copies.setdefault(item.second.name, set()).add(item.ids[1])
    sizes = {item.second.name: len(item.second.ids) for item in shared}
    many = {name for name, ids in copies.items() if len(ids) > allowed * sizes[name]}
    return [replace(item, is_of_many=item.first.name == "train" and item.second.name in many) for item in shared]


def leak(shared: Sequence[Shared]) -> DataError | None:
    """Why a model would be judged by what it was trained on, with the files and ids, or None if it would not."""
    leaks = [item for item in shared if item.is_leak]
    hint = "take them out of one of the files: a model must not train on what it is judged by"
    return DataError(listing(leaks), hint) if leaks else None


def listing(shared: Sequence[Shared]) -> str:
    """The first three, and how many more."""
    more = f"\n… and {len(shared) - 3} more" if len(shared) > 3 else ""
    return "\n".join(str(item) for item in shared[:3]) + more


def _same(first: Iterable[Hashable], second: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    places = {name: index for index, name in enumerate(second)}
    yield from ((index, places[name]) for index, name in enumerate(first) if name is not None and name in places)


def _repeated(names: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    places: dict[Hashable, int] = {}
    for index, name in enumerate(names):
        if name is not None and places.setdefault(name, index) != index:
            yield index, places[name]


def _contents(members: Sequence[Member], cache: ImageCache) -> list[dict[str, list[Hashable]]]:
    """For each member, names of each image's file, bytes and pixels; None for what is not decoded."""
    cached = [member.cached for member in members if member.cached is not None]
    if len(cached) < len(members):
        return [{} for _ in members]
    decoded = [part.decoded for part in cached]
    digests = np.concatenate([part.digests[rows] for part, rows in zip(cached, decoded, strict=True)])
    keys, first, bytes_ = np.unique(digests.view(f"S{DIGEST}")[:, 0], return_index=True, return_inverse=True)
    files = [part.files[row] for part, rows in zip(cached, decoded, strict=True) for row in rows.tolist()]
    previews = np.concatenate([part.previews() for part in cached])
    pictures = cache.get_or_compute(
        b"pictures" + keys.tobytes(),
        lambda: same_pictures(previews[first], [files[index] for index in first.tolist()]),
    )
    contents = []
    ends = np.cumsum([len(rows) for rows in decoded])
    for part, rows, own in zip(cached, decoded, np.split(bytes_, ends[:-1]), strict=True):
        names = np.full((2, len(part.files)), None, object)
        names[:, rows] = own, pictures[own]
        contents.append({"file": list(part.files), "bytes": names[0].tolist(), "pixels": names[1].tolist()})
    return contents


def same_pictures(previews: Previews, files: Sequence[str]) -> Index:
    """For each image (N,) the first one of the same pixels, mostly itself."""
    same = np.arange(len(files))
    alike = _look_alike(previews)
    first: dict[bytes, int] = {}
    with strict_decoding(), ThreadPoolExecutor(available_cores()) as pool:
        digests = pool.map(_pixel_digest, [files[index] for index in alike])
        for index, digest in zip(alike, digests, strict=True):
            same[index] = first.setdefault(digest, index)
    return same


def _pixel_digest(file: str) -> bytes:
    image = decode(read_content(Path(file)))
    return blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=DIGEST).digest()


def _look_alike(previews: Previews) -> Index:
    """The images (M,) that share size and nearly the thumbnail with another one, in their order."""
    _, sizes = np.unique(previews["size"], axis=0, return_inverse=True)
    order = np.argsort(sizes, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(sizes))[:-1]) if len(order) else []
    return np.sort(np.concatenate([order[:0], *(rows[_near(previews["thumbnail"][rows])] for rows in groups)]))


def _near(thumbnails: Bytes) -> NDArray[np.bool_]:
    """Which of some thumbnails (N, 8, 8, 3) are near another one, (N,)."""
    flat = np.ascontiguousarray(thumbnails.reshape(len(thumbnails), -1))
    # Equal ones (all-black images, say) are one point: so the tree has no heaps of pairs.
    _, first, points = np.unique(flat.view(f"S{flat.shape[1]}")[:, 0], return_index=True, return_inverse=True)
    near = np.bincount(points) > 1
    # A tree of 192 dimensions looks at everything. Means of 4×4 blocks differ by no more than their pixels do, so a
    # tree of these 12 leaves few to compare.
    blocks = scipy.spatial.cKDTree(thumbnails[first].reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(-1, 12))
    pairs = blocks.query_pairs(NEAR * blocks.m + 1e-6, p=1, output_type="ndarray")
    for start in range(0, len(pairs), 10_000):
        one, other = (flat[first[column]].astype(np.int16) for column in pairs[start : start + 10_000].T)
        near[pairs[start : start + 10_000][np.abs(one - other).mean(axis=1) <= NEAR]] = True
    return near[points]
