"""`elta-tune repair`."""

from __future__ import annotations

from pathlib import Path

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Runs, Study


def repair(study: Study = None, runs: Runs = Path("runs"), cache: Cache = DEFAULT_CACHE) -> None:
    """Rebuilds damaged results of a study from the rest of their folders. What is sound stays as it is."""
    from elta_tune import api
    from elta_tune.cli.text import console

    lines = api.repair(study, runs=runs, cache=cache)
    for line in lines or ["nothing is damaged"]:
        console.print(line, soft_wrap=True)
