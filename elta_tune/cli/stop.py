"""`elta-tune stop`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.cli.options import Runs, Study

if TYPE_CHECKING:
    from elta_tune.records import StudyFolder

PAUSE = 0.2
"""Seconds between looks whether the study has ended."""
PATIENCE = 5.0
"""Seconds that a lock may outlive the process that held it."""


def stop(study: Study = None, runs: Runs = Path("runs")) -> None:
    """Ends a study that runs in another terminal, or detached, as Ctrl-C does there."""
    from elta_tune.cli.text import console
    from elta_tune.records import open_study
    from elta_tune.studies.backend import backend_of

    folder = open_study(study, runs, preparing=True)
    if folder.exists() and backend_of(folder) == "nni":  # what is not started has the command's process alone
        stopped = _stop_nni(folder)
    else:  # `is_running` tells of a lock that can't be read
        stopped = folder.is_running() and _stop_process(folder.lock_file, folder.name)
    told = "is stopped" if stopped else "is not running"
    console.print(f"study {folder.name} {told}", soft_wrap=True)


def _stop_process(lock: Path, name: str) -> bool:
    """Asks the process that holds a lock to end, and waits until it has; returns whether there was one."""
    import psutil

    from elta_tune.cli.text import console
    from elta_tune.errors import StudyError
    from elta_tune.locks import owner

    told = owner(lock)
    if told is None:
        return False
    if not told.is_here:
        raise StudyError(f"study {name} runs as {told}", "stop it there")
    console.print(f"stopping study {name} ({told})", soft_wrap=True)
    try:
        process = psutil.Process(told.process)
        # Where machines of one name, or containers, share a folder, the number may be another process's here.
        if lock.resolve() in [Path(file.path) for file in process.open_files()]:
            process.terminate()
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(PAUSE)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        raise StudyError(f"study {name} runs as {told} of another user", "that user can stop it") from None
    until = time.monotonic() + PATIENCE
    while owner(lock) == told and time.monotonic() < until:  # its last threads may outlive its main one by a moment
        time.sleep(PAUSE)
    if owner(lock) == told:
        raise StudyError(f"study {name} still runs: {lock} is held", "by a process of another machine or container?")
    return True


def _stop_nni(folder: StudyFolder) -> bool:
    from elta_tune.cli.text import console
    from elta_tune.errors import StudyError
    from elta_tune.studies.nni.folder import NniFolder
    from elta_tune.studies.nni.node import end, members
    from elta_tune.studies.nni.watcher import reconcile
    from elta_tune.studies.plan import read_plan

    nni = NniFolder(folder)
    try:
        watched = _stop_process(nni.attached_lock, folder.name)
    except PermissionError as error:
        raise StudyError(f"{error.filename}: {error.strerror}", "the study's owner can stop it") from None
    left = bool(members(nni))
    if left and not watched:
        console.print(f"stopping study {folder.name}", soft_wrap=True)
    end(nni)
    if folder.is_running():
        raise StudyError(f"study {folder.name} is run by another user, or elsewhere", "it can be stopped there")
    reconcile(folder, read_plan(folder))
    return watched or left
