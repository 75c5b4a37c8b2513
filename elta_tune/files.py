"""Files: written under a temporary name and then renamed, read only if they are regular and not too large.

A reader sees the old content or the new, never a part. What a killed process left under a temporary name is removed
by the next process that writes in the folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from elta_tune.errors import DamagedError, UnreadableError
from elta_tune.locks import exclusive_lock, lock_of

if TYPE_CHECKING:
    import pandas as pd

UMASK = os.umask(0)
os.umask(UMASK)  # it can only be read by setting it
TEMPORARY = ".aside"
"""Ends the name of a file that is being written."""
LARGEST = 64 * 2**20
"""Bytes of the largest document, record or table of epochs that is read."""


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file under a temporary name, makes it durable and renames it.

    Raises:
        OSError: it can't be written; the old file is untouched.
    """
    with atomic_path(path) as temporary, disk_errors(path):
        write(temporary)


def write_text(path: Path, text: str) -> None:
    """Writes a text file as UTF-8, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes a JSON file, atomically."""
    write_text(path, to_json(value, indent=2) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index, atomically."""
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False, errors="backslashreplace"))


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary name under which the block writes a file, or a folder of files.

    If the block succeeds, the file or folder gets its own name, and a folder that had it is gone. If the block fails,
    nothing is left of it.

    Args:
        durable: it survives a loss of power from then on.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        for file in _files(temporary) if durable else ():
            file.chmod(0o666 & ~UMASK)  # safetensors writes for the owner alone
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)  # a rename replaces only empty folders
        temporary.replace(path)
    finally:
        _remove(temporary)


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else iter((path,))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises an OSError that names the file for what torch and safetensors raise if a disk is full."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(f"{path}: can't be written, with {free} MiB free there: {error}") from error


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left under temporary names, in a folder and below; no process may be writing."""
    for temporary in list(folder.rglob(f".*{TEMPORARY}")):
        _remove(temporary)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Makes a folder that does not exist. If several processes ask at once, the first one writes it and others wait.

    Args:
        write: fills an empty folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(lock_of(folder)):
        if folder.exists():
            return
        for leftover in folder.parent.glob(f".{folder.name}.*{TEMPORARY}"):
            _remove(leftover)
        with atomic_path(folder, durable=False) as temporary:
            temporary.mkdir()
            write(temporary)


def read_regular(path: Path, *, limit: int = LARGEST) -> bytes:
    """The content of a regular file. A pipe or a device in its place neither blocks nor fills the memory.

    Args:
        limit: bytes that it may have.

    Raises:
        OSError: it can't be read, is not a regular file or is too large.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit / 2**20:g} MiB", str(path))
        return file.read(status.st_size)


def check_regular(path: Path) -> None:
    """Refuses what another library must not open, as it could block it.

    Raises:
        OSError: there is no such file, or it is not a regular one.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe would wait for its writer


@contextlib.contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Raises an UnreadableError that names the file for an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"{error.filename or path}: {error.strerror or error}") from error


def to_json(value: object, *, indent: int | None = None) -> str:
    """JSON: null for a number that is not finite, text for paths, escapes for names that are not UTF-8."""
    return as_utf8(json.dumps(_finite(value), indent=indent, allow_nan=False, default=str, ensure_ascii=False))


def as_utf8(text: str) -> str:
    """Text that can be written as UTF-8: names of files may have other bytes, which become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def parse_json(content: bytes, place: str) -> Any:
    """The value of a JSON text.

    Args:
        place: file, or file and line, for errors.

    Raises:
        DamagedError: it is not JSON, names a field twice, or has a number that is not finite.
    """
    try:
        return json.loads(content, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{place}: is damaged: {error}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} appears twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
