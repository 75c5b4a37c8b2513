"""`elta-tune run` and `elta-tune train`."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Runs, Set

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot
    from elta_tune.records import StudyFolder
    from elta_tune.studies.launch import Run
    from elta_tune.studies.plan import StudyPlan

SHOWN = 5
"""Best trials at the end of a study."""


def run(
    space: Annotated[str, typer.Option(help="Search space: a file, or the name of one that ships.")] = "default.yaml",
    recipe: Annotated[str, typer.Option(help="Recipe: a file, or the name of one that ships.")] = "demo.yaml",
    overrides: Set = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Budget: trials that ended complete or pruned.")] = None,
    timeout: Annotated[str | None, typer.Option(help="Budget: time, e.g. 90m, 8h, 2d.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the trainings and the sampler.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the study.", show_default="SPACE-RECIPE[-nni]")] = None,
    runs: Runs = Path("runs"),
    workers: Annotated[str, typer.Option(help="Trials at a time; auto: one per device.")] = "auto",
    devices: Annotated[str, typer.Option(help="cpu, cuda:0,cuda:1, mps; auto: every GPU, else the CPU.")] = "auto",
    backend: Annotated[
        str | None, typer.Option(help="optuna or nni.", show_default="the study's own; of a new one: optuna")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of NNI's web UI.", show_default="the first free from 8080 on")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave NNI running, and return.")] = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Starts a study, or goes on with it: trials run the full ELTA training, up to the study's budget."""
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import console
    from elta_tune.config import read_overrides
    from elta_tune.errors import ConfigError
    from elta_tune.space.space import parse_duration
    from elta_tune.studies.backend import choose_backend
    from elta_tune.studies.launch import ask, open_run

    asked = ask(space, recipe, read_overrides(overrides or ()), seed=seed, name=name, runs=runs, backend=backend)
    folder = asked.folder
    backend = choose_backend(folder, backend)
    if backend != "nni" and (port is not None or detach):
        raise ConfigError(f"{'--detach' if detach else '--port'}: is for --backend nni")
    seconds = None if timeout is None else parse_duration(timeout, "--timeout")
    if backend == "nni":
        from elta_tune.cli import nni

        return nni.run(nni.Command(asked, trials, seconds, cache, workers, devices, port, detach))
    names, count = wanted_slots(workers, devices)
    opened = open_run(
        asked,
        trials=trials,
        timeout=seconds,
        workers=count,
        devices=names,
        cache=cache,
        preparing=preparing(console),
    )
    with to_be_continued(), opened as (plan, ready):
        if ready is None:
            return tell_finished(folder, plan)
        tell_prepared(plan, ready.dataset, ready.slots)
        _watch(folder, plan, ready)


@contextmanager
def to_be_continued() -> Iterator[None]:
    """Says how to go on after Ctrl-C, or SIGTERM, which here is the same, whatever it cut off."""
    from elta_tune.cli.text import console, this_command

    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nstopped at once; to go on:\n  {this_command()}", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def tell_finished(folder: StudyFolder, plan: StudyPlan) -> None:
    """Says that nothing is left to do, and what came out."""
    from elta_tune.cli.text import console
    from elta_tune.studies.completion import is_exhausted, trials_wanted

    told = f"study {folder.name} is finished: {folder.ended()} of {trials_wanted(plan)} trials"
    console.print(told, soft_wrap=True)
    more = "its space is used up" if is_exhausted(folder) else "--trials raises the budget"
    more = "its grid is used up" if plan.space.sampler.name == "grid" else more
    console.print(f"{more}; another study of the same: --name NAME")
    tell_outcome(folder, plan)


def wanted_slots(workers: str, devices: str) -> tuple[list[str] | None, int | None]:
    """Names of devices and trials at a time, None where they are left to the machine.

    Raises:
        ConfigError: --workers is no number.
    """
    from elta_tune.errors import ConfigError

    if workers != "auto" and not (workers.isdecimal() and int(workers)):
        raise ConfigError(f"--workers {workers}: should be a number from 1 on, or auto")
    names = None if devices == "auto" else [part.strip() for part in devices.split(",") if part.strip()]
    return names, None if workers == "auto" else int(workers)


def tell_prepared(plan: StudyPlan, dataset: Dataset, slots: Sequence[Slot]) -> None:
    """What a study is trained on, and what is to be known of it."""
    from rich.text import Text

    from elta_tune.cli.text import console, errors
    from elta_tune.executors import cores_text

    for line in (*dataset.warnings, *filter(None, [plan.note])):
        errors.print(Text(f"note: {line}", style="yellow"), soft_wrap=True)
    splits = [split for split in (dataset.train, dataset.val, dataset.test, dataset.pool) if split is not None]
    sizes = ", ".join(f"{len(split.ids):,} {split.name}" for split in splits)
    console.print(Text(f"{sizes} images; {cores_text(slots)}"))
    for split in splits:
        if split.left_out:
            left_out = f"note: {split.file}: {len(split.left_out)} images are missing or unreadable and left out"
            errors.print(Text(left_out, style="yellow"), soft_wrap=True)


def _watch(folder: StudyFolder, plan: StudyPlan, run: Run) -> None:
    """Shows a study that runs until its end."""
    from rich.text import Text

    from elta_tune.cli.live import Board, study_view
    from elta_tune.cli.text import console, this_command
    from elta_tune.studies.events import interruptible

    verb, supervisor = "goes on" if run.resumed else "starts", run.supervisor
    board = Board(plan, len(run.slots), folder.results(), seconds_before=supervisor.study.seconds_run)
    console.print(Text(f"study {folder.name} {verb}: {board.progress} done\n{folder.path}\n"), soft_wrap=True)
    view_of = study_view(board, console, lambda number: folder.trial(number).epochs())
    with interruptible(supervisor), view_of as view, closing(supervisor.events()) as events:
        for event in events:
            view.show(event)
    tell_outcome(folder, plan)
    if supervisor.stopped == "interrupted":
        console.print(f"stopped; to go on:\n  {this_command()}", soft_wrap=True)
        raise typer.Exit(130)
    if supervisor.stopped == "timeout":
        console.print("the time of the study is used up; to go on: the same command with a larger --timeout")


def tell_outcome(folder: StudyFolder, plan: StudyPlan) -> None:
    """The best trials, where everything lies, and what to type next."""
    from rich.text import Text

    from elta_tune.cli.text import command, console, counts, metric, trial_table
    from elta_tune.results.ranking import ranked
    from elta_tune.studies.completion import is_exhausted

    results, ranking = folder.results(), ranked(folder, plan)
    if not results:
        return
    objective, study = plan.space.objective.metric, study_argument(folder)
    console.print()
    console.print(trial_table((ranking or results)[:SHOWN], objective))
    lines = [f"\n{counts(results)}"]
    if is_exhausted(folder):
        lines.append(f"all {len(results)} points of the space were tried")
    if ranking:
        best, first = ranking[0], next((result for result in ranking if result["trial"] == 0), None)
        gain = f"; trial 0, the recipe as it stands: {metric(first['value'])}" if first else ""
        gain = ", the recipe as it stands" if best is first else gain
        lines.append(f"best: trial {best['trial']}, {objective} {metric(best['value'])}{gain}")
    lines += [f"folder: {folder.path}", f"all trials: {command('show', study)}"]
    if ranking:
        lines.append(f"next:\n  {command('best', study, '--export', 'ckpt')}")
    console.print(Text("\n".join(lines)), soft_wrap=True)


def study_argument(folder: StudyFolder) -> str:
    """How the other commands find the study."""
    default = folder.path.parent == Path("runs").absolute()
    return folder.name if default else os.path.relpath(folder.path)


def train(
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A file, or the name of a recipe that ships.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="STUDY[:TRIAL]", help="Train the configuration of a trial again, or the best."),
    ] = None,
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the trial.", show_default="runs/train-NAME")] = None,
    runs: Runs = Path("runs"),
    device: Annotated[str, typer.Option(help="cpu, cuda:0, mps; auto: the first GPU, else the CPU.")] = "auto",
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Runs one trial without a study, in this process: the path to debug. The same command goes on where it was."""
    from elta_tune import api
    from elta_tune.cli.live import EpochLines
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import console, duration, metric
    from elta_tune.config import read_overrides

    config, name = api.find_recipe(recipe, source=source, overrides=read_overrides(overrides or ()), runs=runs)
    folder = (out or runs / f"train-{name}").absolute()
    with to_be_continued(), ExitStack() as until_ready:
        result = api.train(
            config,
            out=folder,
            device=device,
            cache=cache,
            on_epoch=EpochLines(console, config).show,
            on_ready=until_ready.close,
            progress=until_ready.enter_context(preparing(console)),
        )
    told = result["reason"] or f"{config.evaluation.metric} {metric(result['value'])} at step {result['best_step']}"
    told = f"{result['state']}: {told}, after {duration(result['seconds'])}\n{folder}"
    console.print(told, soft_wrap=True)
    if result["state"] == "failed":
        console.print("to train it anew, remove that folder or choose another with --out")
        raise typer.Exit(1)
