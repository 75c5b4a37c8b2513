"""Progress of long work, and sizes in words."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what)."""


def no_progress(done: int, total: int, what: str) -> None:
    """Shows nothing."""


def size_text(count: float) -> str:
    """``69.0 GB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
