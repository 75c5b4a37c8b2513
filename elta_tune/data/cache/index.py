"""The shelf: what the cache has on disk, under one rule of decoding.

CACHE/pixels-<rule>/
├── 300-<folder>/      a pack of decoded images for each edge and folder of images
├── files.bin          the digest of a file's bytes, by its path, length and time
├── unreadable.txt     why the bytes of a digest are no image
├── snapshots/         what a split was made of when its study began
└── lock               held by the one process that appends
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np

from elta_tune.data.cache.decoding import RULE
from elta_tune.data.cache.packs import DIGEST, Appender, Bytes, Index, Pack, positions, read_records
from elta_tune.locks import exclusive_lock

FILE = 2 * DIGEST + 16
"""Bytes of a record of `files.bin`: hash of the path, length and time of change, digest."""
Facts = tuple[int, int]
"""Length and time of change of a file: with others, its content is another."""


TORN = (OSError, ValueError, EOFError, KeyError, BadZipFile)
"""What NumPy makes of a file of arrays that is not there, or not whole: it is not known then."""


class Shelf:
    """A shelf, whether it is there or not."""

    def __init__(self, root: Path) -> None:
        self.path = root / f"pixels-{hashlib.blake2b(RULE.encode(), digest_size=4).hexdigest()}"
        self._files = self.path / "files.bin"
        self._unreadable = self.path / "unreadable.txt"

    @contextlib.contextmanager
    def lock(self, wait: Callable[[], None]) -> Iterator[None]:
        """Holds the shelf for one writer; `wait` is called if another one holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path / "lock", wait):
            yield

    def packs(self, edge: int) -> list[Pack]:
        """All packs of images of an edge."""
        paths = sorted(about.parent for about in self.path.glob(f"{edge}-*/about.json"))
        return [pack for path in paths if (pack := open_pack(path)) is not None]

    def pack_path(self, edge: int, folder: str) -> Path:
        """Where the images of a folder go."""
        return self.path / f"{edge}-{hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()}"

    def digests(self, files: Sequence[str]) -> Bytes:
        """The digest of each file's bytes (N, 16), as they were when it was last read; 0 if it has changed since."""
        log = read_records(self._files, FILE)
        names = np.frombuffer(b"".join(map(_name, files)), np.uint8).reshape(-1, DIGEST)
        places = positions(names, log[:, :DIGEST])
        known: Index = np.flatnonzero(places >= 0)
        logged = log[places[known]]
        facts = np.array([facts_of(files[index]) for index in known.tolist()], np.int64).reshape(-1, 2)
        same = (logged[:, DIGEST:-DIGEST] == facts.view(np.uint8)).all(axis=1)
        digests = np.zeros((len(files), DIGEST), np.uint8)
        digests[known[same]] = logged[same, -DIGEST:]
        return digests

    def reasons(self, digests: Bytes) -> dict[int, str]:
        """Why files with these digests (N, 16) are no images, by their index."""
        if not self._unreadable.exists():
            return {}
        text = self._unreadable.read_text(encoding="utf-8", errors="replace")
        lines = [line.split(" ", 1) for line in text.splitlines() if " " in line]
        known = np.frombuffer(bytes.fromhex("".join(digest for digest, _ in lines)), np.uint8).reshape(-1, DIGEST)
        places = positions(digests, known)
        return {int(index): lines[places[index]][1] for index in np.flatnonzero(places >= 0)}

    def forget(self) -> None:
        """Removes all that is known of files and splits, as is right where no image is left; the lock stays."""
        for path in (self._files, self._unreadable):
            path.unlink(missing_ok=True)
        for folder in ("snapshots", "pictures"):
            shutil.rmtree(self.path / folder, ignore_errors=True)

    def remembered(self, kind: str, key: bytes, find: Callable[[], Index]) -> Index:
        """What was found for a key, or is found now: (N,)."""
        path = self.path / kind / f"{hashlib.blake2b(key, digest_size=DIGEST).hexdigest()}.npy"
        with contextlib.suppress(*TORN):
            known: Index = np.load(path)
            return known
        found = find()
        with contextlib.suppress(OSError), whole_file(path) as file:  # else it is found again the next time
            np.save(file, found)
        return found


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is there when it is written as a whole, and would survive a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def open_pack(path: Path) -> Pack | None:
    """A pack, or None where it is not there any more."""
    with contextlib.suppress(FileNotFoundError):
        return Pack(path)
    return None


class Journal:
    """Appends to what a shelf knows of files."""

    def __init__(self, shelf: Shelf) -> None:
        files = shelf.path / "files.bin"
        self._files = Appender(files, len(read_records(files, FILE)) * FILE)
        self._unreadable = Appender(shelf.path / "unreadable.txt")

    def note(self, file: str, facts: Facts, digest: bytes, reason: str | None) -> None:
        """Notes what a file holds, and why that is no image if it is none."""
        if reason is not None:
            self._unreadable.append(f"\n{digest.hex()} {reason}".encode(errors="backslashreplace"))
        self._files.append(_name(file) + np.array(facts, np.int64).tobytes() + digest)

    def close(self) -> None:
        """Ends the noting."""
        self._files.close()
        self._unreadable.close()


def facts_of(file: str) -> Facts:
    """The facts of a file, or what no file has."""
    try:
        facts = os.stat(file)
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _name(file: str) -> bytes:
    return hashlib.blake2b(os.fsencode(file), digest_size=DIGEST).digest()
