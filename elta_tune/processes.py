"""Child processes: they import what this process imports, and nothing that happens to be in some working directory."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

PACKAGE_FOLDER = str(Path(__file__).parents[1])
"""Where this very package is imported from."""
DROPPED = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS", "PYTHONPROFILEIMPORTTIME", "PYTHONVERBOSE")
"""Variables that are meant for the interpreter that a user started."""
PR_SET_PDEATHSIG = 1


def python_command(module: str, *arguments: str) -> list[str]:
    """Runs a module with this interpreter; use it with `child_environment()`."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """The environment of a child process: safe imports, and output that no name of a file can break."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environment |= {"PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    environment["PYTHONPATH"] = os.pathsep.join(_import_path())
    return environment


def _import_path() -> list[str]:
    """What a child needs in `PYTHONPATH`; the folders of the interpreter and its packages it finds by itself.

    The folder of the main script, or the working directory, is on the path of this process alone. It is passed on only
    if this package was imported from there.
    """
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    library = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
    ahead = list(takewhile(lambda entry: os.path.basename(entry) != library, sys.path))
    path = [entry for entry in map(os.path.abspath, filter(None, ahead)) if entry in named or entry not in _unsafe()]
    if PACKAGE_FOLDER not in (*path, *sys.path[len(ahead) :]):
        path.append(PACKAGE_FOLDER)
    return list(dict.fromkeys(path))


def _unsafe() -> set[str]:
    """The folders that Python puts first on the path by itself."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    folders = set() if script is None else {os.path.dirname(os.path.abspath(script))}
    with suppress(FileNotFoundError):  # a working directory that was removed
        folders.add(os.getcwd())
    return folders


def end_with_parent(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however that happens; for Linux, elsewhere nothing.

    Args:
        parent: its process number, of which this was started: if it is gone already, so is this process.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
