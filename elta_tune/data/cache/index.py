"""The index of a cache under one rule of decoding: an SQLite file that says what of the flat files is valid.

CACHE/pixels-<rule>/
├── index.sqlite       the tables of `SCHEMA`
├── 300-<random>/      a pack of decoded images for each edge and folder of images
├── in-use/            a lock for each snapshot, held by the processes that use it
└── lock               held by the one process that appends images

A pack is synced before a transaction names its images, and SQLite undoes a transaction that was killed. Its journal is
the classic one: write-ahead logs don't work on network file systems. A damaged index counts as empty, and the next
process that appends makes it again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elta_tune.data.cache.decoding import RULE
from elta_tune.data.cache.packs import DIGEST, Bytes, Images, Index, Pack, is_whole
from elta_tune.errors import DataError
from elta_tune.locks import exclusive_lock

SCHEMA = """
CREATE TABLE packs (id INTEGER PRIMARY KEY, name TEXT UNIQUE, edge INTEGER, folder BLOB, images INTEGER);
CREATE TABLE images (digest BLOB, edge INTEGER, pack INTEGER, place INTEGER, PRIMARY KEY (digest, edge)) WITHOUT ROWID;
CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, digest BLOB) WITHOUT ROWID;
CREATE TABLE unreadable (digest BLOB PRIMARY KEY, reason TEXT) WITHOUT ROWID;
CREATE TABLE snapshots (key BLOB PRIMARY KEY, rows BLOB, digests BLOB, left_out TEXT);
CREATE TABLE snapshot_images (key BLOB, edge INTEGER, packs TEXT, owners BLOB, places BLOB, PRIMARY KEY (key, edge));
CREATE TABLE computed (key BLOB PRIMARY KEY, value BLOB);
"""
LAYOUT = "SQLite index"
"""Another layout of folder or tables needs another text: caches of other layouts are not read, only removed."""
WAIT = 60.0
"""Seconds for which a process waits while another one commits."""
Facts = tuple[int, int]
"""Size and time of change of a file: if one differs, its content may differ."""
Statement = tuple[str, Sequence[tuple[object, ...]]]
"""SQL, and the values of each time that it is executed."""


@contextlib.contextmanager
def cache_errors(path: Path, problem: str) -> Iterator[None]:
    """Raises a DataError for what the system or SQLite reports of a cache."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(f"{path}: {problem}: {reason or error}") from error


class CacheIndex:
    """The index of the cache in a folder, whether it exists or not. All methods raise OSError and sqlite3.Error."""

    def __init__(self, root: Path) -> None:
        self.path = root / f"pixels-{hashlib.blake2b(f'{LAYOUT} {RULE}'.encode(), digest_size=4).hexdigest()}"
        self.file = self.path / "index.sqlite"

    @contextlib.contextmanager
    def exclusive_lock(self, wait: Callable[[], None]) -> Iterator[None]:
        """Holds the cache for one writer of images; `wait` is called if another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(self.path / "lock", wait):
            yield

    def create(self) -> None:
        """Makes an empty index if there is none, or a damaged one; call it under the lock."""
        if self.query("PRAGMA quick_check(1)") == [("ok",)] and self.query("SELECT count(*) FROM packs"):
            self._drop_damaged_packs()
            return
        self.clear()
        self.remove_unnamed_packs()
        temporary = self.file.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(temporary)) as database:
            database.executescript(SCHEMA)
        temporary.replace(self.file)

    def _drop_damaged_packs(self) -> None:
        """Drops images whose pack was removed or truncated by another process: they are decoded again."""
        packs = self.query("SELECT id, name, edge, images FROM packs")
        damaged = [(number,) for number, name, *size in packs if not is_whole(self.path / name, *size)]
        if damaged:
            self.drop_packs(damaged)

    def drop_packs(self, numbers: Sequence[tuple[int]]) -> None:
        """Forgets packs; `remove_unnamed_packs` removes them."""
        self.change(("DELETE FROM images WHERE pack = ?", numbers), ("DELETE FROM packs WHERE id = ?", numbers))
        self.remove_unnamed_packs()

    def clear(self) -> None:
        """Removes the index: all that is known of files and snapshots. A journal must not be applied to the next."""
        for suffix in (".sqlite", ".sqlite-journal", ".new", ".new-journal"):
            self.file.with_suffix(suffix).unlink(missing_ok=True)

    def remove_unnamed_packs(self) -> None:
        """Removes packs that the index does not name; call it under the lock."""
        named = {name for (name,) in self.query("SELECT name FROM packs")}
        for path in self.path.glob("[0-9]*-*"):
            if path.name not in named:
                shutil.rmtree(path)

    def query(self, sql: str, *values: object, wanted: Iterable[bytes] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; none if the index is missing or damaged.

        Args:
            wanted: keys that the query may join, as table `wanted` of (position, key).
        """
        try:
            with self._connection() as database:
                database.execute("CREATE TEMP TABLE wanted (position INTEGER PRIMARY KEY, key BLOB)")
                database.executemany("INSERT INTO wanted VALUES (?, ?)", enumerate(wanted))
                return database.execute(sql, values).fetchall()
        except FileNotFoundError:
            return []
        except sqlite3.Error as error:
            if _is_damage(error):
                return []
            raise

    def change(self, *statements: Statement) -> None:
        """Executes statements in one transaction."""
        with self._connection() as database, database:
            for sql, values in statements:
                database.executemany(sql, values)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection that makes no file, and reads where it may not write."""
        self.file.stat()
        uri = f"{self.file.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=WAIT)) as database:
            database.execute("PRAGMA temp_store = MEMORY")
            yield database

    def digests(self, files: Sequence[str]) -> Bytes:
        """The digest of each file's bytes (N, 16), as they were when it was last read; 0 if it has changed since."""
        rows = self.query(
            "SELECT position, size, modified, digest FROM wanted CROSS JOIN files ON path = key",
            wanted=map(os.fsencode, files),
        )
        same = [(position, digest) for position, *facts, digest in rows if facts_of(files[position]) == tuple(facts)]
        digests = np.zeros((len(files), DIGEST), np.uint8)
        digests[[position for position, _ in same]] = as_digests(b"".join(digest for _, digest in same))
        return digests

    def images(self, digests: Bytes, edges: Sequence[int]) -> dict[int, Images]:
        """The images, by their edge, of files with these digests (N, 16)."""
        rows = self.query(
            "SELECT position, edge, pack, place FROM wanted CROSS JOIN images ON digest = key", wanted=_keys(digests)
        )
        found = np.array(rows, np.int64).reshape(-1, 4)
        return {edge: self._images(edge, digests, found[found[:, 1] == edge]) for edge in edges}

    def _images(self, edge: int, digests: Bytes, found: Index) -> Images:
        names: dict[int, str] = dict(self.query("SELECT id, name FROM packs WHERE edge = ?", edge))
        owners, rows = np.full((2, len(digests)), -1)
        packs: list[Pack] = []
        for number in np.unique(found[:, 2]).tolist():
            if (pack := self.open_pack(names.get(number, ""))) is not None:
                own = found[found[:, 2] == number]
                owners[own[:, 0]], rows[own[:, 0]] = len(packs), own[:, 3]
                packs.append(pack)
        return Images(edge, packs, owners, rows, digests)

    def open_pack(self, name: str) -> Pack | None:
        """A pack, or None if another process has removed it."""
        with contextlib.suppress(FileNotFoundError):
            return Pack(self.path / name)
        return None

    def reasons(self, digests: Bytes) -> dict[int, str]:
        """Why files with these digests (N, 16) can't be decoded, by their position."""
        joined = "SELECT position, reason FROM wanted CROSS JOIN unreadable ON digest = key"
        return dict(self.query(joined, wanted=_keys(digests)))

    def known_digests(self, edge: int) -> set[bytes]:
        """The digests of all images of an edge."""
        return {digest for (digest,) in self.query("SELECT digest FROM images WHERE edge = ?", edge)}

    def bytes_at(self, edges: Iterable[int]) -> int:
        """What all images of some edges take on disk."""
        counts: Mapping[int, int] = dict(self.query("SELECT edge, sum(images) FROM packs GROUP BY edge"))
        return sum(counts.get(edge, 0) * edge**2 * 3 for edge in {*edges})


def facts_of(file: str) -> Facts:
    """The facts of a file, or what no file has."""
    try:
        facts = os.stat(file)
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def as_digests(content: bytes) -> Bytes:
    """Digests one after the other as an array (N, 16)."""
    return np.frombuffer(content, np.uint8).reshape(-1, DIGEST)


def _keys(digests: Bytes) -> Iterator[bytes]:
    return (digest.tobytes() for digest in digests)


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether a file is not a database, or not all of one."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    parts = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return code & 0xFF in parts or code == sqlite3.SQLITE_IOERR_SHORT_READ or "no such table" in str(error)
