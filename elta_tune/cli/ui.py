"""`elta-tune ui`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from elta_tune.cli.options import Runs, Study


def ui(
    study: Study = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the web UI.", show_default="the first free from 8080 on")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Opens NNI's web UI on a study that NNI ran; Ctrl-C closes it. Of a running study it says the address."""
    from elta_tune import api
    from elta_tune.cli.run import hang_up, print_address
    from elta_tune.cli.text import console

    # A shell in the background has switched the first one off; of the terminal's end nohup has.
    for number in (signal.SIGINT, signal.SIGTERM, *hang_up()):
        signal.signal(number, signal.default_int_handler)
    try:
        with api.open_ui(study, port=port, runs=runs) as opened:
            if isinstance(opened, str):
                return print_address(opened)
            print_address(opened.address)
            console.print("Ctrl-C closes it")
            opened.wait()
    except KeyboardInterrupt:
        console.print("closed")
