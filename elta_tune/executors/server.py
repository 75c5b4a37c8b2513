"""The process that trials are forked from: it has imported torch and timm once, so that they start at once.

    supervisor ── control ── server     a request for a trial, with the far ends of the next two; no more when it ends
    supervisor ── watch ──── server     of one trial: its exit code; anything sent, or the supervisor's end, kills it
    supervisor ── reports ── trial      the job, epochs, verdicts
    server ────── life ───── trial      carries nothing: its end says that the other one is gone

So a trial ends with the server, and both end with the supervisor, whichever of them is killed.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NoReturn

from elta_tune.processes import end_with_parent

PRELOAD = ("elta_tune.executors.worker", "scipy.stats", "pandas.io.formats.csvs", "torch.utils.serialization")
"""What a trial imports, late imports of libraries included."""


@dataclass(frozen=True)
class Child:
    """A trial's process, the server's ends of its connections."""

    process: int
    watch: Connection
    life: Connection

    def end(self) -> None:
        """Waits until the process is gone, and reports its exit code."""
        _, status = os.waitpid(self.process, 0)
        send(self.watch, os.waitstatus_to_exitcode(status))
        self.watch.close()
        self.life.close()

    def kill(self) -> None:
        """Ends the process at once; it can't be another one of its number, as it has not been waited for."""
        os.kill(self.process, signal.SIGKILL)
        self.end()


def send(connection: Connection, message: object) -> None:
    """Sends to whoever may be gone."""
    try:
        connection.send(message)
    except OSError:
        pass


def serve(control: socket.socket, fault: str | None) -> None:
    """Forks a trial for each request until the supervisor is gone, then ends all.

    Args:
        fault: why no trial can run: the answer to each request.
    """
    children: list[Child] = []
    try:
        while True:
            ready = wait([control, *(connection for child in children for connection in (child.life, child.watch))])
            for child in list(children):
                if child.life in ready or child.watch in ready:
                    children.remove(child)
                    child.end() if child.life in ready else child.kill()
            if control in ready and not _accept(control, children, fault):
                return
    finally:
        for child in children:
            child.kill()


def _accept(control: socket.socket, children: list[Child], fault: str | None) -> bool:
    """Forks a trial as requested; False if there are no more requests."""
    message, descriptors, *_ = socket.recv_fds(control, 1, 2)
    if not message:
        return False
    watch, reports = (Connection(descriptor) for descriptor in descriptors)
    if fault is None:
        fault = _fork(control, children, watch, reports)
    if fault is not None:
        send(watch, fault)
        watch.close()
    reports.close()  # the trial has it, and its end is to be the connection's
    return True


def _fork(control: socket.socket, children: list[Child], watch: Connection, reports: Connection) -> str | None:
    """Starts a trial among the children; returns why it can't."""
    life, life_of_child = Pipe()
    server = os.getpid()
    try:
        process = os.fork()
    except OSError as error:
        return f"no process can be started: {error.strerror}"
    if process:
        life_of_child.close()
        children.append(Child(process, watch, life))
        return None
    # A trial that held the other ends of its siblings' connections would hide their end.
    control.close()
    for connection in (watch, life, *(other for child in children for other in (child.watch, child.life))):
        connection.close()
    _run(server, reports, life_of_child)


def _run(server: int, reports: Connection, life: Connection) -> NoReturn:
    """What the forked process does; it never returns."""
    code = 1
    try:
        end_with_parent(server)
        from elta_tune.executors.worker import work

        work(reports, life)
        code = 0
    except BaseException:  # whatever was raised, no code of the server may run in this process
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def preload() -> str | None:
    """Imports what trials need; returns why it can't."""
    try:
        for name in PRELOAD:
            import_module(name)
    except Exception as error:
        return f"{type(error).__name__} on import: {error}"
    return None


def main(supervisor: str | None) -> None:
    """The command: its standard input is the control connection.

    Args:
        supervisor: number of the process to end with, where the thread that started this one lives as long as that.
    """
    if supervisor is not None:
        end_with_parent(int(supervisor))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and the terminal's end are for the supervisor to answer
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    control = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    serve(control, preload())


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
