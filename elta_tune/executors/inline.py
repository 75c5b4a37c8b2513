"""The inline executor: runs a trial in this process, one at a time, for `breakpoint()`, pdb and profilers.

What a trial prints stays in the terminal. A fault of the program ends the study with its traceback; the same command
resumes it. Results are the local executor's.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import ConfigError, DamagedError, EltaTuneError, reason_of
from elta_tune.executors import Ended, Halted, Heard, Job, Reported, Slot, Verdict
from elta_tune.records import EpochRecord, TrialFolder, TrialResult
from elta_tune.trial import TrialPruned, TrialStopped, record_failure, trial_epochs


@dataclass
class Trial:
    """The running trial; it waits for a `verdict` after each epoch, and continues with it in the next `wait`."""

    job: Job
    epochs: Generator[EpochRecord, None, TrialResult]
    verdict: Verdict | None = "go on"


class InlineExecutor:
    """Runs a trial in this process, within `wait`."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        if len(slots) > 1:
            raise ConfigError("`workers` and `devices`: the inline executor runs one trial at a time", "`workers=1`")
        self._slot = slots[0]
        self._trial: Trial | None = None
        self._threads = torch.get_num_threads()

    @staticmethod
    def prepare() -> None:
        """Nothing takes long here."""

    @property
    def running(self) -> Sequence[int]:
        """The number of the trial that runs."""
        return [] if self._trial is None else [self._trial.job.number]

    @property
    def has_room(self) -> bool:
        """Whether no trial runs."""
        return self._trial is None

    def start(self, job: Job) -> None:
        """Makes a trial ready for `wait`."""
        torch.set_num_threads(self._slot.threads)
        epochs = trial_epochs(
            job.config,
            TrialFolder(job.folder),
            cache=ImageCache(job.cache),
            device=self._slot.device,
            number=job.number,
            params=job.params,
        )
        self._trial = Trial(job, epochs)

    def wait(self, timeout: float) -> list[Heard]:
        """Runs the trial to its next epoch or its end."""
        trial = self._trial
        if trial is None or trial.verdict is None:
            time.sleep(timeout)
            return []
        number = trial.job.number
        event: Heard | None = None
        try:
            event = Reported(number, _advance(trial))
        except (StopIteration, TrialStopped):
            event = Ended(number, None)
        except (OSError, DamagedError) as error:
            event = Halted(number, str(error))
        except EltaTuneError as error:
            record_failure(TrialFolder(trial.job.folder), reason_of(error), number, trial.job.params)
            event = Ended(number, None)
        finally:
            if not isinstance(event, Reported):
                self.close()
        return [event]

    def answer(self, number: int, verdict: Verdict) -> None:
        """Records how the trial continues."""
        if self._trial is not None:
            self._trial.verdict = verdict

    def close(self) -> None:
        """Leaves the trial that runs, to be resumed."""
        torch.set_num_threads(self._threads)
        if self._trial is not None:
            self._trial.epochs.close()
        self._trial = None


def _advance(trial: Trial) -> EpochRecord:
    verdict, trial.verdict = trial.verdict, None
    if verdict in ("prune", "stop"):
        return trial.epochs.throw(TrialPruned() if verdict == "prune" else TrialStopped())
    return next(trial.epochs)


EXECUTOR = InlineExecutor
