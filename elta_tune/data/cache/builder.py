"""Decodes what a cache lacks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import UnidentifiedImageError

from elta_tune.cores import available_cores
from elta_tune.data.cache.decoding import Shrunk, read_content, shrink, strict_decoding
from elta_tune.data.cache.index import CacheIndex, Facts, facts_of
from elta_tune.data.cache.packs import DIGEST, PackWriter
from elta_tune.files import as_utf8

COMMIT_IMAGES, COMMIT_SECONDS = 256, 5.0
"""The most work that a kill may cost."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: no `digest` if it can't be read, a `reason` if it can't be read or decoded."""

    facts: Facts
    digest: bytes = b""
    shrunk: Shrunk | None = None
    reason: str | None = None


class CacheWriter:
    """Appends images of a folder at some edges, and records what files contain."""

    def __init__(self, index: CacheIndex, folder: str, edges: Iterable[int]) -> None:
        index.create()
        self.known = {edge: index.known_digests(edge) for edge in edges}
        self._index, self._folder = index, os.fsencode(folder)
        self._packs: dict[int, tuple[int, PackWriter]] = {}
        self._images: list[tuple[bytes, int, int, int]] = []
        self._outcomes: list[tuple[str, Outcome]] = []
        self._committed = time.monotonic()

    def add(self, file: str, outcome: Outcome) -> None:
        """Takes what became of a file, and commits now and then."""
        if outcome.shrunk is not None:
            self._append(outcome.digest, outcome.shrunk)
        self._outcomes.append((file, outcome))
        if len(self._outcomes) == COMMIT_IMAGES or time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def _append(self, digest: bytes, shrunk: Shrunk) -> None:
        for edge in shrunk.pixels:
            if digest not in self.known[edge]:  # else another file has the same bytes
                number, pack = self._pack(edge)
                self._images.append((digest, edge, number, pack.append(shrunk)))
                self.known[edge].add(digest)

    def _pack(self, edge: int) -> tuple[int, PackWriter]:
        """The pack of the folder's images at an edge, with its number in the index."""
        if edge not in self._packs:
            search = "SELECT id, name, images FROM packs WHERE edge = ? AND folder = ?"
            if not (found := self._index.query(search, edge, self._folder)):
                row = (f"{edge}-{uuid.uuid4().hex[:8]}", edge, self._folder)
                self._index.change(("INSERT INTO packs (name, edge, folder, images) VALUES (?, ?, ?, 0)", [row]))
                found = self._index.query(search, edge, self._folder)
            number, name, count = found[0]
            self._packs[edge] = number, PackWriter(self._index.path / name, edge, count)
        return self._packs[edge]

    def commit(self) -> None:
        """Makes known what was added: the pixels first, so that no image is known without them."""
        for _, pack in self._packs.values():
            pack.sync()
        read = [(file, outcome) for file, outcome in self._outcomes if outcome.digest]
        files = [(os.fsencode(file), *outcome.facts, outcome.digest) for file, outcome in read]
        reasons = [(outcome.digest, as_utf8(outcome.reason)) for _, outcome in read if outcome.reason is not None]
        counts = [(pack.count, number) for number, pack in self._packs.values()]
        self._index.change(
            ("INSERT INTO images VALUES (?, ?, ?, ?)", self._images),
            ("UPDATE packs SET images = ? WHERE id = ?", counts),
            ("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", files),
            ("INSERT OR REPLACE INTO unreadable VALUES (?, ?)", reasons),
        )
        self._images.clear()
        self._outcomes.clear()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Ends the writing; what was not committed is lost."""
        for _, pack in self._packs.values():
            pack.close()


def build(
    index: CacheIndex, files: Sequence[str], edges: Sequence[int], progress: Callable[[int], None]
) -> dict[int, str]:
    """Reads files, and decodes them at some edges, or at none. Threads suffice: Pillow decodes without the GIL.

    Args:
        progress: called with how many files are done.

    Returns:
        Why files can't be read or decoded, by their position.

    Raises:
        OSError, sqlite3.Error: the cache can't be written.
    """
    if not files:
        return {}
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    failed: dict[int, str] = {}
    with (
        contextlib.closing(CacheWriter(index, folder, edges)) as writer,
        strict_decoding(),
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        outcomes = _in_order(pool, partial(_read, known=writer.known), files)
        for position, (file, outcome) in enumerate(zip(files, outcomes, strict=True)):
            writer.add(file, outcome)
            if outcome.reason is not None:
                failed[position] = outcome.reason
            progress(position + 1)
        writer.commit()
    return failed


def _read(file: str, known: Mapping[int, set[bytes]]) -> Outcome:
    """Reads a file, once, and decodes it for the edges at which its bytes are not known."""
    facts = facts_of(file)
    try:
        content = read_content(Path(file))
    except (OSError, ValueError) as error:
        return Outcome(facts, reason=why_unreadable(error))
    digest = hashlib.blake2b(content, digest_size=DIGEST).digest()
    edges = [edge for edge, digests in known.items() if digest not in digests]
    try:
        return Outcome(facts, digest, shrink(content, edges) if edges else None)
    except Exception as error:  # a hostile file may raise anything; that it is unreadable is all that counts
        return Outcome(facts, digest, reason=why_unreadable(error))


def why_unreadable(error: Exception) -> str:
    """The reason why an image can't be read or decoded."""
    if isinstance(error, UnidentifiedImageError):  # its text contains a memory address
        return "it is not an image"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _in_order(pool: ThreadPoolExecutor, work: Callable[[str], Outcome], files: Iterable[str]) -> Iterator[Outcome]:
    """Like `pool.map`, but with few results waiting at a time."""
    running: deque[Future[Outcome]] = deque()
    for file in files:
        running.append(pool.submit(work, file))
        if len(running) > 4 * available_cores():
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
