"""Output paths of commands, checked before the work starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elta_tune.errors import StudyError
from elta_tune.records.owner import owner_of


@contextmanager
def naming_unwritable(path: Path) -> Iterator[None]:
    """Makes a StudyError that names the file of what the system says where it can't be written."""
    try:
        yield
    except OSError as error:
        problem = f"{path}: can't be written: {error.strerror}" if error.strerror else str(error)
        raise StudyError(problem) from error


def refuse_existing(path: Path, force: bool, argument: str, *, what: str = "") -> None:
    """Refuses what would replace something, or go into a folder that something else owns.

    Args:
        argument: of the API, which names the path.
        what: a further fact about the path.

    Raises:
        StudyError: it already exists or its place is owned, and it is not to be written by force.
    """
    if not force and (owner := owner_of(path)) is not None:
        raise StudyError(
            f"{path}: belongs to {owner}", f"choose another `{argument}`, or write it all the same: `force=True`"
        )
    if path.exists() and not force:
        raise StudyError(f"{path}: already exists{what}", f"replace it: `force=True`, or choose another `{argument}`")


def check_output(path: Path, force: bool, argument: str) -> None:
    """Refuses a file that can't be written; makes its folder.

    Raises:
        StudyError: as `refuse_existing`, or no file can be written there.
    """
    refuse_existing(path, force, argument)
    if path.exists() and not path.is_file():
        raise StudyError(f"{path}: is not a file, and can't be replaced")
    with naming_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
