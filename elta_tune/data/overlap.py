"""Images that are in two splits: by id, file, bytes or pixels."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from elta_tune.data.cache import DECODED, CacheFolder
from elta_tune.data.decoding import decode
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

    The pool must share none with validation or test. Labelled splits must share no id and no file; the same content
    in two files is a warning, since AVA itself has such pairs.

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
            leak = shared.how in ("id", "file") or ("pool" in (first.name, second.name) and held_out)
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
        ("id", _same(first.ids, second.ids)),
        ("file", _same(first.cache.files, second.cache.files)),
        ("bytes", _same_bytes(first, second)),
        ("pixels", _same_pixels(first, second)),
    ):
        for a, b in pairs:
            if a not in seen:
                seen.add(a)
                yield Shared(first, second, (first.ids[a], second.ids[b]), how)


def _same(first: Iterable[Hashable], second: Iterable[Hashable]) -> Iterator[tuple[int, int]]:
    places = {name: index for index, name in enumerate(second)}
    yield from ((index, places[name]) for index, name in enumerate(first) if name in places)


def _same_bytes(first: Member, second: Member) -> Iterator[tuple[int, int]]:
    digests = second.cache.digests()
    places = {digests[index].tobytes(): int(index) for index in _decoded(second.cache)}
    digests = first.cache.digests()
    for index in _decoded(first.cache):
        if (other := places.get(digests[index].tobytes())) is not None:
            yield int(index), other


def _same_pixels(first: Member, second: Member) -> Iterator[tuple[int, int]]:
    """Near thumbnails are candidates; what counts are the fully decoded pixels."""
    a_rows, b_rows = _decoded(first.cache), _decoded(second.cache)
    if not len(a_rows) or not len(b_rows):
        return
    a, b = first.cache.thumbnails()[a_rows], second.cache.thumbnails()[b_rows]
    # Identical thumbnails (all-black images, say) are looked up once: the tree then has no heaps of equal points.
    points, groups = np.unique(b, axis=0, return_inverse=True)
    members: dict[int, list[int]] = {}
    for row, group in zip(b_rows, groups, strict=True):
        members.setdefault(int(group), []).append(int(row))
    for position, candidates in enumerate(_near(a, points)):
        for other in (row for group in candidates for row in members[group]):
            if _equal_pixels(first.cache.files[a_rows[position]], second.cache.files[other]):
                yield int(a_rows[position]), other
                break


def _near(thumbnails: NDArray[np.uint8], points: NDArray[np.uint8]) -> Iterator[list[int]]:
    """For each of some thumbnails (A, 8, 8, 3) the near ones of `points` (B, 8, 8, 3)."""
    # A tree of 192 dimensions looks at everything. Means of 4×4 blocks differ by no more than their pixels do, so a
    # tree of these 12 leaves few to compare (20,000 with 200,000 images: 1 s, not 10 minutes).
    blocks = cKDTree(_block_means(points))
    candidates = blocks.query_ball_point(_block_means(thumbnails), r=NEAR * blocks.m + 1e-6, p=1)
    for thumbnail, near in zip(thumbnails, candidates, strict=True):
        distances = np.abs(points[near] - thumbnail.astype(np.float32)).mean(axis=(1, 2, 3))
        yield [index for index, distance in zip(near, distances, strict=True) if distance <= NEAR]


def _block_means(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    means: NDArray[np.float64] = thumbnails.reshape(-1, 2, 4, 2, 4, 3).mean(axis=(2, 4))
    return means.reshape(-1, 12)


def _decoded(cache: CacheFolder) -> NDArray[np.int64]:
    return np.flatnonzero(cache.status() == DECODED)


def _equal_pixels(first: Path, second: Path) -> bool:
    one, other = decode(first.read_bytes()), decode(second.read_bytes())
    return one.size == other.size and one.tobytes() == other.tobytes()
