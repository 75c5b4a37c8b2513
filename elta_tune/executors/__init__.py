"""Where trials run: the jobs that a supervisor gives to an executor, and the events that it gets back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol

from elta_tune.config import TrialConfig
from elta_tune.cores import available_cores
from elta_tune.errors import ConfigError
from elta_tune.records import EpochRecord
from elta_tune.space.parameters import Params
from elta_tune.suggestions import did_you_mean

Verdict = Literal["go on", "prune", "stop"]
MODULES = {"local": "elta_tune.executors.local", "inline": "elta_tune.executors.inline"}
"""Where each executor is: its module, imported when it is used, has its class as `EXECUTOR`."""


@dataclass(frozen=True)
class Slot:
    """Where one trial runs at a time."""

    device: str
    threads: int


@dataclass(frozen=True)
class Job:
    """A trial to run, in its folder, from its last saved epoch."""

    number: int
    config: TrialConfig
    params: Params
    folder: Path
    cache: Path


@dataclass(frozen=True)
class Reported:
    """A trial finished an epoch and waits for the verdict."""

    number: int
    record: EpochRecord

    def __repr__(self) -> str:
        shown = [f"{name}={self.record.value(name):.4g}" for name in ("loss", "srcc") if name in self.record.values]
        return f"Reported({', '.join([f'trial={self.number}', f'step={self.record.step}', *shown])})"


@dataclass(frozen=True)
class Ended:
    """A trial's process is gone. Its folder has the result, or else it was stopped or died.

    `fault` says how it died (a signal, an exit code), None if it ended by itself.
    """

    number: int
    fault: str | None


@dataclass(frozen=True)
class Halted:
    """A trial's process is gone for a fault of the machine (a full disk, a folder that vanished or is damaged).

    Its folder has everything up to then. Once the fault is fixed, the trial resumes.
    """

    number: int
    reason: str


Heard = Reported | Ended | Halted


class Executor(Protocol):
    """Runs jobs in slots, like `concurrent.futures`, but with an event for each epoch."""

    def __init__(self, slots: Sequence[Slot]) -> None: ...

    @staticmethod
    def prepare() -> None:
        """Begins what takes long before the first trial, and returns at once."""
        ...

    @property
    def running(self) -> Sequence[int]:
        """Numbers of the trials that run: from `start` until `wait` returned their `Ended`."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        ...

    def start(self, job: Job) -> None:
        """Starts a trial in a free slot."""
        ...

    def wait(self, timeout: float) -> list[Heard]:
        """What happened, as soon as something did, or nothing after `timeout` seconds."""
        ...

    def answer(self, number: int, verdict: Verdict) -> None:
        """Sends the verdict to a trial that reported."""
        ...

    def close(self) -> None:
        """Ends all running trials at once."""
        ...


def plan_slots(devices: Sequence[str], workers: int | None) -> list[Slot]:
    """One slot per device, or `workers` of them dealt out over the devices; they share the cores.

    Raises:
        ConfigError: no device, or no worker.
    """
    if not devices or (workers is not None and workers < 1):
        raise ConfigError("`workers` and `devices`: there should be at least one of each")
    count = workers or len(devices)
    threads = max(1, available_cores() // count)
    return [Slot(devices[index % len(devices)], threads) for index in range(count)]


def cores_text(slots: Sequence[Slot]) -> str:
    """How the slots share the machine, for people."""
    devices = ", ".join(dict.fromkeys(slot.device for slot in slots))
    plural = "s" if len(slots) > 1 else ""
    cores = "core" if slots[0].threads == 1 else "cores"
    return f"{len(slots)} worker{plural} on {devices}, {slots[0].threads} {cores} each"


def load_executor(name: str) -> type[Executor]:
    """An executor's class by its name.

    Raises:
        ConfigError: unknown executor.
    """
    if name not in MODULES:
        raise ConfigError(f"`executor={name}`: should be {' or '.join(MODULES)}{did_you_mean(name, MODULES)}")
    executor: type[Executor] = import_module(MODULES[name]).EXECUTOR
    return executor
