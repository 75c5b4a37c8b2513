"""File locks, which the kernel releases when their holder dies.

A lock file contains `process 123 on HOST`, the process that took it last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Owner:
    """A process by its number, which holds on one machine."""

    process: int
    host: str

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == platform.node()

    def __str__(self) -> str:
        return f"process {self.process}" if self.is_here else f"process {self.process} on {self.host}"


class Held(Exception):
    """Another process holds the lock. The text names it."""

    def __init__(self, owner: Owner | None) -> None:
        super().__init__(str(owner or "another process"))


@contextlib.contextmanager
def hold(path: Path) -> Iterator[int]:
    """Holds a lock file, with this process's number in it.

    Yields:
        The file's descriptor. A child that inherits it holds the lock too, until it ends.

    Raises:
        Held: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _take(file):
            raise Held(_owner(file))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield file.fileno()


@contextlib.contextmanager
def exclusive_lock(path: Path, wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds a lock file, after whoever holds it now. The holder may remove the file: the next one makes it again.

    Args:
        wait: is called once if another process holds the file.
    """
    while True:
        with path.open("w") as file:
            if not _lock(file, fcntl.LOCK_EX):
                wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


def lock_of(folder: Path) -> Path:
    """The lock file for making or removing a folder."""
    return folder.with_name(f".{folder.name}.lock")


def is_held(path: Path) -> bool:
    """Whether a process holds a lock file, which may be read-only."""
    try:
        with path.open() as file:
            return not _lock(file, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def owner(path: Path) -> Owner | None:
    """The process that took a lock file last, or None if nobody holds it."""
    if not is_held(path):
        return None
    with path.open() as file:
        return _owner(file)


def _take(file: TextIO) -> bool:
    """Locks a file unless another process holds it. One that shares it is in `is_held`, and releases it at once."""
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


def _owner(file: TextIO) -> Owner | None:
    file.seek(0)
    content = re.fullmatch(r"process (\d+) on (.*)", file.read().strip())
    return Owner(int(content[1]), content[2]) if content else None
