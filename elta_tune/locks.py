"""File locks: the kernel knows who holds one, and forgets it when he dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOOKS = 3
PAUSE = 0.05
"""An observer holds a lock for a moment: a lock counts as held after so many looks, so many seconds apart."""


class Held(Exception):
    """Another process holds the lock; `owner` is its id, None if it left none."""

    def __init__(self, owner: int | None) -> None:
        super().__init__(owner)
        self.owner = owner


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int]:
    """Holds a lock file, with this process's id in it.

    Yields:
        The file's descriptor: a child that inherits it holds the lock, too, and until it ends.

    Raises:
        Held: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        for look in range(LOOKS):
            if _lock(file):
                break
            if look + 1 == LOOKS:
                raise Held(_owner(file))
            time.sleep(PAUSE)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield file.fileno()


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file."""
    if not path.exists():
        return False
    with path.open("a+", encoding="utf-8") as file:
        return not _lock(file)


def owner(path: Path) -> int | None:
    """The process that took a lock file last, or None if nobody holds it."""
    if not is_held(path):
        return None
    with path.open(encoding="utf-8") as file:
        return _owner(file)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(file: IO[str]) -> int | None:
    file.seek(0)
    word = file.read().strip().rpartition(" ")[2]
    return int(word) if word.isdecimal() else None
