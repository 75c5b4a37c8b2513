"""The start and the end of a study under any back end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.errors import StudyError
from elta_tune.locks import owner
from elta_tune.records import StudyFolder
from elta_tune.studies.backend import LaunchOptions, RunningStudy, Say, StudyRequest, backend_of, load_backend
from elta_tune.studies.completion import is_finished
from elta_tune.studies.moved import moved_fields, settle_move
from elta_tune.studies.plan import StudyPlan, read_plan, record_plan
from elta_tune.studies.request import resolve_plan
from elta_tune.training.devices import check_names

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot

PAUSE = 0.2
"""Seconds between looks whether a process has ended."""
PATIENCE = 5.0
"""Seconds that a lock may outlive the process that held it."""


@contextmanager
def launch(request: StudyRequest, options: LaunchOptions) -> Iterator[RunningStudy | None]:
    """Holds a study and makes it ready to run, or joins it where it runs already; yields None where it is finished.

    The trials start when `events` of what it yields is called. Without that call, a study that can run by itself
    (`Backend.has_ui`) is left running.

    Raises:
        EltaTuneError: the study can't start or go on: why, and what to change.
    """
    backend = load_backend(request.backend)
    backend.check_installed()
    check_names(options.devices or ())
    resolve_plan(request)  # is refused here, before a folder is made
    with backend.launch(request, options) as running:
        yield running


def ended_too_early(running: RunningStudy) -> bool:
    """Whether a study that was joined ended by itself before it knew its raised budget: it has to start again."""
    return running.attached and not running.stopped and not is_finished(running.folder, running.plan)


@contextmanager
def study_lock(folder: StudyFolder) -> Iterator[int]:
    """Holds the study for this process; yields its lock. A study that is refused leaves no folder behind.

    Raises:
        StudyError: another process holds it, or its folder can't be written.
    """
    with folder.lock() as lock:
        try:
            yield lock
        finally:
            if not folder.exists():
                folder.lock_file.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.path.rmdir()


def prepare_study(folder: StudyFolder, plan: StudyPlan, options: LaunchOptions) -> tuple[list[Slot], Dataset]:
    """The slots and the data of a study, checked before a trial starts. Trials whose data were moved get the new paths.

    Raises:
        EltaTuneError: a device, the data or the model.
    """
    with options.preparing as progress:
        from elta_tune.data.cache.image_cache import ImageCache
        from elta_tune.studies.preflight import choose_slots, preflight_study  # which import torch

        slots = choose_slots(options.devices, options.workers)
        dataset = preflight_study(plan, slots, ImageCache(options.cache), progress)
        if folder.exists():
            settle_move(folder, plan, dataset)
        return slots, dataset


def settle_finished(folder: StudyFolder, plan: StudyPlan, options: LaunchOptions) -> None:
    """Gives a finished study the new paths of its data, if they were moved."""
    if moved_fields(read_plan(folder).recipe, plan.recipe):
        prepare_study(folder, plan, options)
        record_plan(folder, plan, {})


def stop_study(folder: StudyFolder, say: Say) -> bool:
    """Ends a study that runs or is prepared, as Ctrl-C does; returns whether it did.

    Raises:
        StudyError: it runs elsewhere, is another user's, or its lock can't be read.
    """
    if folder.exists():
        return backend_of(folder).stop(folder, say)
    return stop_holder(folder, folder.lock_file, say)


def stop_holder(folder: StudyFolder, lock: Path, say: Say) -> bool:
    """Ends the process that holds a lock of a study, and waits until it has; returns whether there was one.

    Raises:
        StudyError: it runs elsewhere, is another user's, or the lock can't be read.
    """
    import psutil

    if not folder.is_running() and not lock.exists():
        return False
    holder = owner(lock)
    if holder is None:
        return False
    if not holder.is_here:
        raise StudyError(f"study {folder.name} runs as {holder}", "stop it there")
    say(f"stopping study {folder.name} ({holder})")
    try:
        process = psutil.Process(holder.process)
        # Where machines of one name, or containers, share a folder, the number may be another process's here.
        if lock.resolve() in [Path(file.path) for file in process.open_files()]:
            process.terminate()
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(PAUSE)
    except psutil.NoSuchProcess:
        pass
    except psutil.AccessDenied:
        raise StudyError(f"study {folder.name} runs as {holder} of another user", "that user can stop it") from None
    until = time.monotonic() + PATIENCE
    while owner(lock) == holder and time.monotonic() < until:  # its last threads may outlive its main one by a moment
        time.sleep(PAUSE)
    if owner(lock) == holder:
        hint = "by a process of another machine or container?"
        raise StudyError(f"study {folder.name} still runs: {lock} is held", hint)
    return True
