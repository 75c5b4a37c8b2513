"""`elta-tune stop`."""

from __future__ import annotations

from pathlib import Path

from elta_tune.cli.options import Runs, Study


def stop(study: Study = None, runs: Runs = Path("runs")) -> None:
    """Ends a study that runs in another terminal, or detached, as Ctrl-C does there."""
    from elta_tune.cli.text import console
    from elta_tune.records import open_study
    from elta_tune.studies.launch import stop_study

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    folder = open_study(study, runs, preparing=True)
    stopped = stop_study(folder, say)
    say(f"study {folder.name} {'is stopped' if stopped else 'is not running'}")
