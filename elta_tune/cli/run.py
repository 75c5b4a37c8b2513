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
from elta_tune.cli.output import work_goes_on

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot
    from elta_tune.records import StudyFolder
    from elta_tune.studies.backend import RunningStudy
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
    executor: Annotated[
        str, typer.Option(help="local: a process per trial; inline: this process, one trial at a time, for a debugger.")
    ] = "local",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of NNI's web UI.", show_default="the first free from 8080 on")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave NNI running, and return.")] = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Starts a study, or goes on with it: trials run the full ELTA training, up to the study's budget."""
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import command, console
    from elta_tune.config import read_overrides
    from elta_tune.errors import ConfigError
    from elta_tune.space.space import parse_duration
    from elta_tune.studies.backend import LaunchOptions, load_backend
    from elta_tune.studies.launch import ended_too_early, launch
    from elta_tune.studies.request import request_study, resolve_plan

    request = request_study(
        space,
        recipe,
        read_overrides(overrides or ()),
        seed=seed,
        name=name,
        runs=runs,
        backend=backend,
        trials=trials,
        timeout=None if timeout is None else parse_duration(timeout, "--timeout"),
    )
    if (port is not None or detach) and not load_backend(request.backend).has_ui:
        raise ConfigError(f"{'--detach' if detach else '--port'}: is for `backend=nni`")
    names, count = wanted_slots(workers, devices)
    options = LaunchOptions(cache, preparing(console), count, names, executor, port)
    with resume_hint_on_interrupt():
        while True:
            with launch(request, options) as running:
                if running is None:
                    return print_finished(request.folder, resolve_plan(request))
                print_started(running)
                if not detach:
                    watch(running, is_live=executor != "inline")
            if detach or not ended_too_early(running):
                break
    if detach:
        stop = command("stop", study_argument(request.folder))
        console.print(f"the study keeps running; to watch it: the same command; to end it: {stop}", soft_wrap=True)


@contextmanager
def resume_hint_on_interrupt() -> Iterator[None]:
    """Prints how to go on after Ctrl-C or SIGTERM. From here on, standard output only reports on the work."""
    from elta_tune.cli.text import console, this_command

    work_goes_on()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"\nstopped at once; to go on:\n  {this_command()}", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, previous)


def print_finished(folder: StudyFolder, plan: StudyPlan) -> None:
    """A study whose budget is used: its outcome, and how to go on."""
    from elta_tune.cli.text import console
    from elta_tune.studies.completion import is_exhausted, trials_wanted

    done = f"{folder.used_budget()} of {trials_wanted(plan)} trials"
    console.print(f"study {folder.name} is finished: {done}", soft_wrap=True)
    more = "its space is used up" if is_exhausted(folder, plan) else "--trials raises the budget"
    more = "its grid is used up" if plan.space.sampler.name == "grid" else more
    console.print(f"{more}; to start another study: --name NAME")
    print_outcome(folder, plan)


def wanted_slots(workers: str, devices: str) -> tuple[list[str] | None, int | None]:
    """Names of devices and trials at a time, None where they are left to the machine.

    Raises:
        ConfigError: --workers is no number.
    """
    from elta_tune.errors import ConfigError

    if workers != "auto" and not (workers.isdecimal() and int(workers)):
        raise ConfigError(f"--workers {workers}: should be a number from 1 on, or auto")
    names = None if devices == "auto" else [part.strip() for part in devices.split(",")]
    return names, None if workers == "auto" else int(workers)


def print_data(plan: StudyPlan, dataset: Dataset, slots: Sequence[Slot]) -> None:
    """The data of a study, with the notes on them."""
    from rich.text import Text

    from elta_tune.cli.text import console, note
    from elta_tune.errors import plural
    from elta_tune.executors import cores_text

    for line in (*dataset.warnings, *filter(None, [plan.note])):
        note(line)
    splits = [split for split in (dataset.train, dataset.val, dataset.test, dataset.pool) if split is not None]
    sizes = ", ".join(f"{len(split.ids):,} {split.name}" for split in splits)
    console.print(Text(f"{sizes} images; {cores_text(slots)}"))
    for split in splits:
        if split.left_out:
            note(f"{split.file}: {plural(len(split.left_out), 'image')} left out: missing or unreadable")


def print_started(running: RunningStudy) -> None:
    """A study that starts: its data, folder, address and trials so far."""
    from elta_tune.cli.output import FLAGS
    from elta_tune.cli.text import console, note
    from elta_tune.studies.completion import trials_wanted

    folder, plan = running.folder, running.plan
    if running.dataset is not None:
        print_data(plan, running.dataset, running.slots)
    for line in running.notes:
        note(line)
    verb = "is running: attached to it" if running.attached else "goes on" if running.resumed else "starts"
    done = "" if running.attached else f": {folder.used_budget()} of {trials_wanted(plan)} trials done"
    console.print(f"study {folder.name} {verb}{done}\n{folder.path}", soft_wrap=True)
    if running.ignored:
        options = ", ".join(FLAGS[name] for name in running.ignored)
        console.print(f"note: {options}: as it was started; to change that, stop it first", style="yellow")
    if running.address:
        print_address(running.address)
    console.print()


def print_address(address: str) -> None:
    """The address of the web UI."""
    from elta_tune.cli.text import console

    console.print(f"web UI, for this user alone: {address}", soft_wrap=True)


def hang_up() -> tuple[signal.Signals, ...]:
    """The signal of a terminal that closes. It stops a study as Ctrl-C does, unless nohup ignores it."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


def watch(running: RunningStudy, *, is_live: bool = True) -> None:
    """Shows a study that runs until its end.

    Args:
        is_live: whether the terminal is free for a table that is redrawn, and not a debugger's.
    """
    from elta_tune.cli.live import study_view
    from elta_tune.cli.output import unfailing
    from elta_tune.cli.study_progress import StudyProgress
    from elta_tune.cli.text import console, this_command
    from elta_tune.studies.events import interruptible

    folder, plan = running.folder, running.plan
    progress = StudyProgress(plan, len(running.slots), folder.results(), running.seconds_before)
    view_of = study_view(progress, console, lambda number: folder.trial(number).epochs(), is_live=is_live)
    with interruptible(running, *hang_up()), view_of as view, closing(running.events()) as events:
        show = unfailing(view.show)
        for event in events:
            show(event)
    print_outcome(folder, plan)
    if running.stopped == "interrupted":
        console.print(f"stopped; to go on:\n  {this_command()}", soft_wrap=True)
        raise typer.Exit(130)
    if running.stopped == "timeout":
        console.print("the time of the study is used up; to go on: the same command with a larger --timeout")


def print_outcome(folder: StudyFolder, plan: StudyPlan) -> None:
    """The best trials, where everything lies, and what to type next."""
    from rich.text import Text

    from elta_tune.cli.live import print_line
    from elta_tune.cli.text import command, console, counts, metric, trial_table
    from elta_tune.results.ranking import ranked
    from elta_tune.studies.backend import backend_of
    from elta_tune.studies.completion import is_exhausted

    results, ranking = folder.results(), ranked(folder, plan)
    if not results:
        return
    objective, study = plan.space.objective.metric, study_argument(folder)
    console.print()
    console.print(trial_table((ranking or results)[:SHOWN], objective))
    console.print()
    print_line(console, counts(results))
    if is_exhausted(folder, plan):
        print_line(console, f"all {len(results)} points of the space were tried")
    if ranking:
        best, first = ranking[0], next((result for result in ranking if result.trial == 0), None)
        gain = f"; trial 0, the recipe as it stands: {metric(first.value)}" if first else ""
        gain = ", the recipe as it stands" if best is first else gain
        print_line(console, f"best: trial {best.trial}, {objective} {metric(best.value)}{gain}")
    lines = [f"folder: {folder.path}", f"all trials: {command('show', study)}"]
    if backend_of(folder).has_ui:
        lines.append(f"web UI: {command('ui', study)}")
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
    from elta_tune.cli.output import unfailing
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import console, duration, metric
    from elta_tune.config import read_overrides

    config, name = api.find_recipe(recipe, source=source, overrides=read_overrides(overrides or ()), runs=runs)
    folder = (out or runs / f"train-{name}").absolute()
    with resume_hint_on_interrupt(), ExitStack() as until_ready:
        result = api.train(
            config,
            out=folder,
            device=device,
            cache=cache,
            on_epoch=unfailing(EpochLines(console, config).show),
            on_ready=until_ready.close,
            progress=until_ready.enter_context(preparing(console)),
        )
    outcome = result.reason or f"{config.evaluation.metric} {metric(result.value)} at step {result.best_step}"
    console.print(f"{result.state}: {outcome}, after {duration(result.seconds)}\n{folder}", soft_wrap=True)
    if result.state == "failed":
        console.print("to train it again, remove this folder, or choose another: --out FOLDER")
        raise typer.Exit(1)
