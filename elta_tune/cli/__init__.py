"""The command line: it parses, calls and prints. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import os
import sys

import typer

from elta_tune.cli import data, models, nni, results, run, space, stop
from elta_tune.errors import EltaTuneError

app = typer.Typer(
    name="elta-tune",
    help="Studies of full ELTA trainings: image aesthetics assessment on long-tailed ratings, tuned.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run")(run.run)
app.command("stop")(stop.stop)
app.command("ui")(nni.ui)
app.command("train")(run.train)
app.command("best")(results.best)
app.command("evaluate")(models.evaluate)
app.command("predict")(models.predict)
app.command("export")(models.export)
app.command("sharpen")(models.sharpen)
app.command("list")(results.list_studies)
app.command("show")(results.show)
app.add_typer(space.app, name="space")
app.add_typer(data.app, name="data")


def main() -> None:
    """The entry point: a refusal is a line and a hint, exit code 2; any other fault keeps its traceback."""
    # OpenMP's threads spin while they wait for each other, by default so long that on cores that others use too a
    # training took ten times as long; this short a spin costs nothing where the cores are free. It is read when torch
    # is imported, here or in a process that this one starts.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        app()
    except EltaTuneError as error:
        print(f"elta-tune: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        sys.exit(2)
