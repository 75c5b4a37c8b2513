"""The local executor: one process per trial, one slot per device.

Processes come from a forkserver that has imported torch and timm once: a trial then starts in hundredths of a second,
and a crash, an out-of-memory or a leak stays in its own process.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import ModuleType

from elta_tune.executors import Ended, Halted, Heard, Job, Reported, Slot, Verdict

PRELOAD = ["elta_tune.executors.worker", "scipy.stats", "pandas.io.formats.csvs", "torch.utils.serialization"]
"""What a trial's process imports, libraries' own late imports among it: the forkserver has it ready."""


@dataclass
class Running:
    """A started trial."""

    process: ForkServerProcess
    connection: Connection
    slot: Slot


def start_forkserver() -> None:
    """Starts the forkserver, whose imports then run while the caller does something else."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    multiprocessing.resource_tracker.ensure_running()  # which unblocks signals
    # Ctrl-C goes to all processes of a terminal, and is the supervisor's to answer: started while it is blocked, the
    # forkserver and its children never take it, and this process takes it afterwards.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextmanager
def without_main_script() -> Iterator[None]:
    """Processes that are started within do not import the main script.

    A trial needs nothing of it; and imported there, a script that starts a study without asking for `__main__` would
    start it again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class LocalExecutor:
    """Runs each trial in a process of its own."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        start_forkserver()
        self._context = multiprocessing.get_context("forkserver")
        self._free = list(slots)
        self._running: dict[int, Running] = {}

    @property
    def running(self) -> Sequence[int]:
        """Numbers of the trials that run."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    def start(self, job: Job) -> None:
        """Starts a trial in a free slot."""
        from elta_tune.executors.worker import work

        slot = self._free.pop(0)
        ours, theirs = self._context.Pipe()
        arguments = (theirs, job, slot.device, slot.threads, time.time())
        process = self._context.Process(target=work, args=arguments, name=f"trial-{job.number}")
        with without_main_script():
            process.start()
        theirs.close()  # else the end of the process would not end the pipe
        self._running[job.number] = Running(process, ours, slot)

    def wait(self, timeout: float) -> list[Heard]:
        """What happened, as soon as something did, or nothing after `timeout` seconds."""
        owners = {running.connection: number for number, running in self._running.items()}
        if not owners:
            time.sleep(timeout)
        ready = wait(list(owners), timeout) if owners else []
        return [self._hear(owners[connection]) for connection in ready if isinstance(connection, Connection)]

    def answer(self, number: int, verdict: Verdict) -> None:
        """Tells a trial that reported how to go on; that it died meanwhile is heard by `wait`."""
        try:
            self._running[number].connection.send(verdict)
        except OSError:
            pass

    def close(self) -> None:
        """Ends whatever still runs, at once."""
        for running in self._running.values():
            running.process.kill()
        for number in list(self._running):
            self._release(number)

    def _hear(self, number: int) -> Heard:
        try:
            message = self._running[number].connection.recv()
        except (EOFError, OSError):  # the latter where it died in the middle of a message
            return Ended(number, _fault(self._release(number)))
        if isinstance(message, Halted):
            self._release(number)
            return message
        return Reported(number, message)

    def _release(self, number: int) -> int | None:
        """Frees the slot of a trial once its process is gone; returns the exit code."""
        running = self._running.pop(number)
        running.process.join()
        running.connection.close()
        self._free.insert(0, running.slot)
        return running.process.exitcode


def _fault(exitcode: int | None) -> str | None:
    if exitcode is not None and exitcode < 0:
        names = {item.value: item.name for item in signal.Signals}
        name = names.get(-exitcode, f"signal {-exitcode}")  # real-time signals have no name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with exit code {exitcode}" if exitcode else None
