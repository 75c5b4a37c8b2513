"""Decodes what a shelf does not have."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import UnidentifiedImageError

from elta_tune.cores import available_cores
from elta_tune.data.cache.decoding import Shrunk, careful, read_content, shrink
from elta_tune.data.cache.index import Facts, Journal, Shelf, facts_of
from elta_tune.data.cache.packs import DIGEST, PackWriter

COMMIT_IMAGES, COMMIT_SECONDS = 256, 5.0
"""What a kill may cost."""


@dataclass(frozen=True)
class Outcome:
    """What became of a file: it has no digest if it can't be read, and a `reason` if it is no image."""

    facts: Facts
    digest: bytes = b""
    shrunk: Shrunk | None = None
    reason: str | None = None


class Writer:
    """Appends to the packs of a folder of images, and to what the shelf knows of files."""

    def __init__(self, shelf: Shelf, folder: str, edges: Iterable[int]) -> None:
        self.known = {
            edge: {digest.tobytes() for pack in shelf.packs(edge) for digest in pack.digests()} for edge in edges
        }
        self._packs = {edge: PackWriter(shelf.pack_path(edge, folder), edge, folder) for edge in self.known}
        self._journal = Journal(shelf)
        self._pending: list[tuple[str, Outcome]] = []
        self._committed = time.monotonic()

    def add(self, file: str, outcome: Outcome) -> None:
        """Takes what became of a file, and commits now and then."""
        if outcome.shrunk is not None:
            for edge in outcome.shrunk.pixels:
                if outcome.digest not in self.known[edge]:  # else another file has the same bytes
                    self._packs[edge].append(outcome.digest, outcome.shrunk, edge)
                    self.known[edge].add(outcome.digest)
        self._pending.append((file, outcome))
        if len(self._pending) == COMMIT_IMAGES or time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Makes known what was added: images first, then the files that hold them."""
        for pack in self._packs.values():
            pack.commit()
        for file, outcome in self._pending:
            if outcome.digest:
                self._journal.note(file, outcome.facts, outcome.digest, outcome.reason)
        self._pending.clear()
        self._committed = time.monotonic()

    def close(self) -> None:
        """Ends the writing; what was not committed is lost."""
        for pack in self._packs.values():
            pack.close()
        self._journal.close()


def build(shelf: Shelf, files: Sequence[str], edges: Sequence[int], progress: Callable[[int], None]) -> dict[int, str]:
    """Reads files, and decodes them at some edges, or none. Threads suffice: Pillow holds no interpreter's lock.

    Args:
        progress: called with how many files are done.

    Returns:
        Why files can't be read or decoded, by their index.

    Raises:
        OSError: the shelf can't be written.
    """
    if not files:
        return {}
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    failed: dict[int, str] = {}
    with (
        contextlib.closing(Writer(shelf, folder, edges)) as writer,
        careful(),
        ThreadPoolExecutor(available_cores()) as pool,
    ):
        outcomes = _in_order(pool, partial(_read, known=writer.known), files)
        for index, (file, outcome) in enumerate(zip(files, outcomes, strict=True)):
            writer.add(file, outcome)
            if outcome.reason is not None:
                failed[index] = outcome.reason
            progress(index + 1)
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
    """What to tell of an image that can't be read or decoded."""
    if isinstance(error, UnidentifiedImageError):  # whose text names an address in memory
        return "it is no image"
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
