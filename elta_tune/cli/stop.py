"""`elta-tune stop`."""

from __future__ import annotations

from pathlib import Path

from elta_tune.cli.options import Runs, Study


def stop(study: Study = None, runs: Runs = Path("runs")) -> None:
    """Ends a study that runs in another terminal, or detached, as Ctrl-C does there."""
    from elta_tune import api
    from elta_tune.cli.text import say
    from elta_tune.records import open_study

    folder = open_study(study, runs, preparing=True)
    has_stopped = api.stop(folder.path, runs=runs, say=say)
    say(f"study {folder.name} {'is stopped' if has_stopped else 'is not running'}")
