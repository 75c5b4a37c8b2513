"""Slots that trials take themselves: a lock file each, since NNI does not assign devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from elta_tune.executors import Slot
from elta_tune.locks import Held, hold

PAUSE = 0.1
"""Seconds between attempts to take a slot."""


@contextlib.contextmanager
def take_slot(folder: Path, slots: Sequence[Slot]) -> Iterator[Slot]:
    """Waits for a free slot and holds it.

    Args:
        folder: of the lock files, one per slot: `0-cuda:0`, `1-cuda:1`…
    """
    with contextlib.ExitStack() as stack:
        yield _take(folder, slots, stack)


def _take(folder: Path, slots: Sequence[Slot], stack: contextlib.ExitStack) -> Slot:
    while True:
        for number, slot in enumerate(slots):
            with contextlib.suppress(Held):
                stack.enter_context(hold(folder / f"{number}-{slot.device}"))
                return slot
        time.sleep(PAUSE)
