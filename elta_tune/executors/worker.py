"""What runs in a trial's process."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection

import torch

from elta_tune.errors import DamagedError, reason_of
from elta_tune.executors import Halted, Job, Verdict
from elta_tune.records import EpochRecord, TrialFolder
from elta_tune.trial import TrialPruned, TrialStopped, record_failure, run_trial


class PipeReporter:
    """Reports over a pipe and waits for the verdict. When the supervisor is gone, so is the process: a study that is
    started again then finds no one else in the trial's folder.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._verdicts: queue.Queue[Verdict] = queue.Queue()
        threading.Thread(target=self._listen, name="verdicts", daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                self._verdicts.put(self._connection.recv())
            except (EOFError, OSError):
                os._exit(1)

    def report(self, record: EpochRecord) -> None:
        """Sends the epoch; raises what the supervisor answers."""
        self._connection.send(record)
        verdict = self._verdicts.get()
        if verdict == "prune":
            raise TrialPruned
        if verdict == "stop":
            raise TrialStopped


def work(connection: Connection, job: Job, device: str, threads: int, asked: float) -> None:
    """Runs a trial; what it prints goes to its log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's, which then says what to do
    folder = TrialFolder(job.folder)
    folder.log_output()
    print(f"{time.strftime('%F %T')} process {os.getpid()} on {device}, started in {time.time() - asked:.3f} s")
    torch.set_num_threads(threads)
    reporter = PipeReporter(connection)
    try:
        result = run_trial(
            job.config, folder, reporter, cache=job.cache, device=device, number=job.number, params=job.params
        )
        print(f"{time.strftime('%F %T')} {result.state} {result.reason or ''}")
    except TrialStopped:
        print(f"{time.strftime('%F %T')} stopped, to be resumed")
    except (OSError, DamagedError) as error:  # the machine's fault, or its folder's: the trial is kept as it is
        traceback.print_exc()
        connection.send(Halted(job.number, str(error)))
    except Exception as error:  # a fault of the program: its traceback is in the log, its name in the result
        traceback.print_exc()
        record_failure(folder, reason_of(error), job.number, job.params)
