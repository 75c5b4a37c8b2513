"""What happens in a study, for whoever watches it: the same events under every back end.

When a study stops because trials fail, and how signals ask for a stop, is the same for all of them, too.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, Protocol

from elta_tune.executors import Job, Reported
from elta_tune.records import TrialResult

FAILURES_IN_A_ROW = 3
"""This many trials in a row that fail for the same cause stop the study: a bad node or recipe would use it up."""
ANY_FAILURES_IN_A_ROW = 10
"""This many in a row that fail for any cause stop it, too: failed trials use no budget, so nothing else would."""

StopReason = Literal["interrupted", "timeout", "fault"]


@dataclass(frozen=True)
class Started:
    """A trial starts, or resumes from its last epoch."""

    job: Job
    resumed: bool

    def __repr__(self) -> str:
        return f"Started(trial={self.job.number}, params={self.job.params}, resumed={self.resumed})"


@dataclass(frozen=True)
class Finished:
    """A trial has a result."""

    result: TrialResult

    def __repr__(self) -> str:
        shown = {name: getattr(self.result, name) for name in ("trial", "state", "value", "reason")}
        known = ", ".join(f"{name}={value!r}" for name, value in shown.items() if value is not None)
        return f"Finished({known})"


@dataclass(frozen=True)
class Retried:
    """A trial's process died; the trial is resumed."""

    number: int
    fault: str


@dataclass(frozen=True)
class Paused:
    """A trial saved its epoch and waits for the next start of the study."""

    number: int


@dataclass(frozen=True)
class Tick:
    """Nothing happened for a moment."""


@dataclass(frozen=True)
class Waiting:
    """The study waits for something outside, and continues by itself."""

    reason: str


@dataclass(frozen=True)
class Stopping:
    """The study ends early: someone requested it, its time is used up, or it can't continue.

    Running trials save their epoch first, unless the reason is `now`.
    """

    reason: StopReason | Literal["now"]


Event = Started | Reported | Retried | Finished | Paused | Waiting | Tick | Stopping


def cause_of(reason: str) -> str:
    """A failure's reason without its details: the same fault at another epoch, or of another size, is the same."""
    return re.sub(r"\b(nan|inf)\b", "", re.split(r"[:\d]", reason, maxsplit=1)[0])


class Interruptible(Protocol):
    """What a signal asks to stop."""

    interrupted: bool


class interruptible:  # noqa: N801 - a context manager, named like contextlib's
    """Lets Ctrl-C, SIGTERM and the named signals ask for a stop; a second signal raises KeyboardInterrupt."""

    def __init__(self, running: Interruptible, *more: signal.Signals) -> None:
        self._running = running
        self._signals = (signal.SIGINT, signal.SIGTERM, *more)
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._running.interrupted and number != signal.SIGHUP:  # a closed terminal sends it more than once
            raise KeyboardInterrupt
        self._running.interrupted = True
