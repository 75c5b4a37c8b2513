"""The command line: it parses, calls and prints. What takes long to import is imported by the command that needs it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Annotated

import typer

from elta_tune.cli import data, models, repair, results, run, space, stop, ui
from elta_tune.cli.output import as_typed, lasting_outputs, printable
from elta_tune.errors import EltaTuneError

app = typer.Typer(
    name="elta-tune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"elta-tune {importlib.metadata.version('elta-tune')}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version.")
    ] = False,
) -> None:
    """Studies of full ELTA trainings: image aesthetics assessment on long-tailed ratings, tuned."""


app.command("run")(run.run)
app.command("stop")(stop.stop)
app.command("repair")(repair.repair)
app.command("ui")(ui.ui)
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
    """The entry point. An `EltaTuneError` is a message and a hint, exit code 2; other errors keep their traceback."""
    # OpenMP's threads spin while they wait for each other, by default so long that on cores that others use too a
    # training took ten times as long; this short a spin costs nothing where the cores are free. It is read when torch
    # is imported, here or in a process that this one starts.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    code: str | int | None = 0
    with lasting_outputs() as output:
        try:
            app()
        except EltaTuneError as error:
            code = 2
            print(f"elta-tune: {printable(as_typed(error.message))}", file=sys.stderr)
            if error.hint:
                print(f"  {printable(as_typed(error.hint))}", file=sys.stderr)
        except SystemExit as ended:
            code = ended.code
        output.flush()
        if not code and output.needed and output.fault is not None:
            code = 1
            if not isinstance(output.fault, BrokenPipeError):  # of a reader that has read enough
                print(f"elta-tune: standard output: {output.fault}", file=sys.stderr)
    sys.exit(code)
