"""File locks: the kernel knows who holds one, and forgets it when he dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class Held(Exception):
    """Another process holds the lock; `owner` is its number, None if it left none."""

    def __init__(self, owner: int | None) -> None:
        super().__init__(owner)
        self.owner = owner


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int]:
    """Holds a lock file, with this process's number in it.

    Yields:
        The file's descriptor: a child that inherits it holds the lock, too, and until it ends.

    Raises:
        Held: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _take(file):
            raise Held(_owner(file))
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file. It only looks, also where it may not write."""
    try:
        with path.open() as file:
            return not _lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def owner(path: Path) -> int | None:
    """The process that took a lock file last, or None if nobody holds it."""
    if not is_held(path):
        return None
    with path.open() as file:
        return _owner(file)


def _take(file: TextIO) -> bool:
    """Locks a file unless somebody holds it; who shares it only looks, for less than a moment."""
    while not _lock(file, fcntl.LOCK_EX):
        if not _lock(file, fcntl.LOCK_SH):
            return False
        fcntl.flock(file, fcntl.LOCK_UN)
    return True


def _lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(file: TextIO) -> int | None:
    file.seek(0)
    word = file.read().strip().rpartition(" ")[2]
    return int(word) if word.isdecimal() else None
