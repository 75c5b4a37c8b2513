"""The local executor: one process per trial, so that a crash, an out-of-memory or a leak stays in its own process."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from elta_tune.executors import Ended, Halted, Heard, Job, Reported, Slot, Verdict
from elta_tune.processes import child_environment, python_command

PATIENCE = 10.0
"""Seconds that the server may take to kill a trial, before it is killed itself, and all trials with it."""
_lock = threading.Lock()


class Server:
    """The process that trials are forked from."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair()
        # The kernel ends it with the thread that starts it; only the main thread surely lives long enough.
        is_main = threading.current_thread() is threading.main_thread()
        command = python_command("elta_tune.executors.server", *([str(self.owner)] if is_main else []))
        # It starts with SIGINT blocked: a Ctrl-C before it ignores that would end it.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=child_environment(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
            theirs.close()
        atexit.register(self.kill)

    def request(self, watch: Connection, reports: Connection) -> None:
        """Starts a trial with its ends of two connections; their end says that it could not."""
        with suppress(OSError):
            socket.send_fds(self.control, [b"."], [watch.fileno(), reports.fileno()])

    def kill(self) -> None:
        """Ends it at once, and all trials with it; in a process that was forked from its owner, does nothing."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
            self.control.close()


_servers: dict[int, Server] = {}
"""The server by its owner, which a process that was forked from it is not."""


def running_server() -> Server:
    """The server of this process, started if none runs."""
    with _lock:
        server = _servers.get(os.getpid())
        if server is None or server.process.poll() is not None:
            server = _servers[os.getpid()] = Server()
        return server


@dataclass(frozen=True)
class Running:
    """A started trial: this process's ends of its connections (see `server.py`)."""

    slot: Slot
    server: Server
    watch: Connection
    reports: Connection


class LocalExecutor:
    """Runs each trial in a process of its own."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.prepare()
        self._free = list(slots)
        self._running: dict[int, Running] = {}

    @staticmethod
    def prepare() -> None:
        """Starts the server, whose imports then run while the caller does something else."""
        running_server()

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
        (watch, its_watch), (reports, its_reports) = Pipe(), Pipe()
        server = running_server()
        server.request(its_watch, its_reports)
        its_watch.close()
        its_reports.close()
        running = self._running[job.number] = Running(self._free.pop(0), server, watch, reports)
        with suppress(OSError):  # it is gone already, as `wait` will find
            reports.send((job, running.slot, time.time()))

    def wait(self, timeout: float) -> list[Heard]:
        """What happened, as soon as something did, or nothing after `timeout` seconds."""
        owners = {running.reports: number for number, running in self._running.items()}
        if not owners:
            time.sleep(timeout)
        ready = wait(list(owners), timeout) if owners else []
        return [self._hear(owners[connection]) for connection in ready if isinstance(connection, Connection)]

    def answer(self, number: int, verdict: Verdict) -> None:
        """Sends the verdict to a trial that reported; `wait` finds if it died meanwhile."""
        with suppress(OSError):
            self._running[number].reports.send(verdict)

    def close(self) -> None:
        """Ends all running trials at once."""
        for running in self._running.values():
            with suppress(OSError):
                running.watch.send("kill")
        for number, running in list(self._running.items()):
            if not running.watch.poll(PATIENCE):
                running.server.kill()
            self._release(number)

    def _hear(self, number: int) -> Heard:
        try:
            message = self._running[number].reports.recv()
        except (EOFError, OSError):  # the latter where it died in the middle of a message
            return Ended(number, _fault(self._release(number)))
        if isinstance(message, Halted):
            self._release(number)
            return message
        return Reported(number, message)

    def _release(self, number: int) -> int | str | None:
        """Frees the slot of a trial once its process is gone; returns its exit code, or why it could not start."""
        running = self._running.pop(number)
        ended: int | str | None = None
        try:
            ended = running.watch.recv()
        except (EOFError, OSError):
            running.server.kill()  # it died, and takes a moment; the next trial has another one
        with suppress(EOFError, OSError):
            while True:  # until the process is gone, even if the server is, too
                running.reports.recv()
        running.watch.close()
        running.reports.close()
        self._free.insert(0, running.slot)
        return ended


def _fault(ended: int | str | None) -> str | None:
    if ended is None:
        return "the process that starts trials was ended"
    if isinstance(ended, str):
        return ended
    if ended < 0:
        names = {item.value: item.name for item in signal.Signals}
        name = names.get(-ended, f"signal {-ended}")  # real-time signals have no name
        hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with exit code {ended}" if ended else None


EXECUTOR = LocalExecutor
