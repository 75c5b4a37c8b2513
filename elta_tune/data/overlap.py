"""Images that are in two splits: by id, by their bytes, or by their pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from elta_tune.data.cache import DECODED, CacheFolder, decode
from elta_tune.errors import DataError

NEAR = 1.0
"""Mean difference of two thumbnails, in grey levels, up to which the images themselves are compared."""


@dataclass(frozen=True)
class Member:
    """A split in the search: `ids` (N,) of the images in its cache."""

    name: str
    file: Path
    ids: NDArray[np.object_]
    cache: CacheFolder


@dataclass(frozen=True)
class Shared:
    """An image of `first` that is also in `second`."""

    first: Member
    second: Member
    ids: tuple[str, str]
    how: str

    def __str__(self) -> str:
        return (
            f"{self.first.file}: {self.ids[0]!r} is also in {self.second.file} as {self.ids[1]!r} (the same {self.how})"
        )


def find_overlaps(members: Sequence[Member]) -> list[str]:
    """Looks for shared images in each pair of splits.

    The pool must share none with validation or test. Labelled splits must share no id; the same content under two
    ids is a warning, since AVA itself has such pairs.

    Returns:
        Warnings.

    Raises:
        DataError: names the files and ids that overlap.
    """
    errors: list[Shared] = []
    warnings: list[Shared] = []
    for first, second in itertools.combinations(members, 2):
        held_out = {first.name, second.name} & {"val", "test"}
        for shared in _shared(first, second):
            leak = shared.how == "id" or ("pool" in (first.name, second.name) and held_out)
            (errors if leak else warnings).append(shared)
    if errors:
        raise DataError(
            _listing(errors), "take them out of one of the files: a model must not train on what it is judged by"
        )
    return [_listing(warnings)] if warnings else []


def _listing(shared: Sequence[Shared]) -> str:
    more = f"\n… and {len(shared) - 3} more" if len(shared) > 3 else ""
    return "\n".join(str(item) for item in shared[:3]) + more


def _shared(first: Member, second: Member) -> Iterator[Shared]:
    """Each shared image once, by the plainest way in which it is."""
    # The pool is told first: it is the file to mend.
    if second.name == "pool":
        first, second = second, first
    seen: set[int] = set()
    for how, pairs in (
        ("id", _same_ids(first, second)),
        ("bytes", _same_bytes(first, second)),
        ("pixels", _same_pixels(first, second)),
    ):
        for a, b in pairs:
            if a not in seen:
                seen.add(a)
                yield Shared(first, second, (first.ids[a], second.ids[b]), how)


def _same_ids(first: Member, second: Member) -> Iterator[tuple[int, int]]:
    places = {name: index for index, name in enumerate(second.ids)}
    yield from ((index, places[name]) for index, name in enumerate(first.ids) if name in places)


def _same_bytes(first: Member, second: Member) -> Iterator[tuple[int, int]]:
    places = {digest.tobytes(): index for index, digest in enumerate(second.cache.digests())}
    for index, digest in enumerate(first.cache.digests()):
        if (other := places.get(digest.tobytes())) is not None:
            yield index, other


def _same_pixels(first: Member, second: Member) -> Iterator[tuple[int, int]]:
    """Near thumbnails are candidates; what counts are the fully decoded pixels."""
    (a, a_rows), (b, b_rows) = _thumbnails(first.cache), _thumbnails(second.cache)
    if not len(a) or not len(b):
        return
    # Identical thumbnails (all-black images, say) are looked up once: the tree then has no heaps of equal points.
    points, groups = np.unique(b, axis=0, return_inverse=True)
    near = cKDTree(points).query_ball_point(a, r=NEAR * a.shape[1], p=1)
    members: dict[int, list[int]] = {}
    for position, group in enumerate(groups):
        members.setdefault(int(group), []).append(position)
    for position, candidates in enumerate(near):
        for other in (member for group in candidates for member in members[group]):
            if _equal_pixels(first.cache.files[a_rows[position]], second.cache.files[b_rows[other]]):
                yield int(a_rows[position]), int(b_rows[other])
                break


def _thumbnails(cache: CacheFolder) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rows = np.flatnonzero(cache.status() == DECODED)
    return cache.thumbnails()[rows].reshape(len(rows), -1).astype(np.float32), rows


def _equal_pixels(first: Path, second: Path) -> bool:
    one, other = decode(first), decode(second)
    return one.size == other.size and one.tobytes() == other.tobytes()
