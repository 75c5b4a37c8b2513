"""What runs in a trial's process."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from multiprocessing.connection import Connection, wait

import torch

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import DamagedError, reason_of
from elta_tune.executors import Halted, Verdict
from elta_tune.records import EpochRecord, TrialFolder
from elta_tune.trial import TrialPruned, TrialStopped, record_failure, run_trial


class PipeReporter:
    """Reports over a connection and waits for the verdict.

    When the supervisor or the server is gone, so is this process: a study that is started again then finds no one else
    in the trial's folder.
    """

    def __init__(self, reports: Connection, life: Connection) -> None:
        self._reports = reports
        self._life = life
        self._verdicts: queue.Queue[Verdict] = queue.Queue()
        threading.Thread(target=self._listen, name="verdicts", daemon=True).start()

    def _listen(self) -> None:
        while self._life not in wait([self._reports, self._life]):
            try:
                self._verdicts.put(self._reports.recv())
            except (EOFError, OSError):
                break
        os._exit(1)

    def report(self, record: EpochRecord) -> None:
        """Sends the epoch; raises what the supervisor answers."""
        self._reports.send(record)
        raise_verdict(self._verdicts.get())


def raise_verdict(verdict: Verdict) -> None:
    """Raises in a trial what a verdict says, if it is not to go on."""
    if verdict == "prune":
        raise TrialPruned
    if verdict == "stop":
        raise TrialStopped


def work(reports: Connection, life: Connection) -> None:
    """Runs the trial that the supervisor sends; what it prints goes to its log."""
    job, slot, requested = reports.recv()
    reporter = PipeReporter(reports, life)
    folder = TrialFolder(job.folder)
    try:
        folder.log_output()
        started = time.time() - requested
        print(f"{time.strftime('%F %T')} process {os.getpid()} on {slot.device}, started in {started:.3f} s")
        torch.set_num_threads(slot.threads)
        cache = ImageCache(job.cache)
        result = run_trial(
            job.config, folder, reporter, cache=cache, device=slot.device, number=job.number, params=job.params
        )
        print(f"{time.strftime('%F %T')} {result.state} {result.reason or ''}")
    except TrialStopped:
        print(f"{time.strftime('%F %T')} stopped, to be resumed")
    except (OSError, DamagedError) as error:  # the machine's fault, or its folder's: the trial is kept as it is
        traceback.print_exc()
        reports.send(Halted(job.number, str(error)))
    except Exception as error:  # a fault of the program: its traceback is in the log, its name in the result
        traceback.print_exc()
        record_failure(folder, reason_of(error), job.number, job.params)
