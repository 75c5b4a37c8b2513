"""The progress of what comes before a training, without its imports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elta_tune.cli.output import unfailing


class _Loading:
    """What happens before the first bar: imports take seconds."""

    def __rich__(self) -> str:
        return "checking the model and the data" if "timm" in sys.modules else "loading torch and timm"


@contextmanager
def preparing(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each part of the preparation of data; yields a function of (done, total, what)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    status = console.status(_Loading())
    tasks: dict[str, Any] = {}

    def show(done: int, total: int, what: str) -> None:
        if not tasks:
            status.stop()
            progress.start()
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
            if not console.is_terminal:
                console.print(f"{what}: {total}")
        progress.update(tasks[what], completed=done)

    if console.is_terminal:
        status.start()
    try:
        yield unfailing(show)
    finally:
        status.stop()
        progress.stop()
