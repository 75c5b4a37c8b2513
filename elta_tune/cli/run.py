"""`elta-tune run` and `elta-tune train`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elta_tune.cli.options import DEFAULT_CACHE, Cache, Runs, Set

if TYPE_CHECKING:
    from elta_tune.executors.local import Slot
    from elta_tune.records import StudyFolder
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
    name: Annotated[str | None, typer.Option(help="Name of the study.", show_default="SPACE-RECIPE")] = None,
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
    from elta_tune.cli.text import console
    from elta_tune.config import load_recipe
    from elta_tune.documents import find_document
    from elta_tune.errors import ConfigError
    from elta_tune.records import StudyFolder
    from elta_tune.space import load_space, parse_duration
    from elta_tune.studies.backends import check_plan, choose_backend
    from elta_tune.studies.plan import make_plan, settle

    recipe_file, space_file = find_document(recipe, "trials"), find_document(space, "search_spaces")
    config = load_recipe(recipe_file, [*(overrides or ()), *([] if seed is None else [f"seed={seed}"])])
    asked = make_plan(load_space(space_file, config), config)
    name = name or f"{space_file.stem}-{recipe_file.stem}"
    if Path(name).name != name:
        raise ConfigError(f"--name {name}: should be a plain name; --runs says in which folder")
    folder = StudyFolder((runs / name).absolute())
    backend = choose_backend(folder, backend)
    if backend != "nni" and (port is not None or detach):
        raise ConfigError(f"{'--detach' if detach else '--port'}: is for --backend nni")
    budget = (trials, None if timeout is None else parse_duration(timeout, "--timeout"))
    plan = settle(folder, asked, *budget)
    check_plan(plan, backend)
    files = {"space_file": str(space_file), "recipe_file": str(recipe_file)}
    if backend == "nni":
        from elta_tune.cli import nni

        return nni.run(nni.Command(folder, asked, budget, cache, workers, devices, port, detach, files))
    if folder.ended() >= plan.budget.trials:
        console.print(f"study {name} is finished: {folder.ended()} of {plan.budget.trials} trials\n")
        return tell_outcome(folder, plan)
    slots = prepare(plan, cache, workers, devices)
    with folder.lock():
        plan = settle(folder, asked, *budget)  # now that nobody else can change it
        _supervise(folder, plan, cache, slots, files)


def prepare(plan: StudyPlan, cache: Path, workers: str, devices: str, *, fork: bool = True) -> list[Slot]:
    """Finds out whether the study can run at all, while the forkserver (if `fork`) imports what trials need."""
    from rich.text import Text

    from elta_tune.cli.live import preparing
    from elta_tune.cli.text import console, errors
    from elta_tune.errors import ConfigError
    from elta_tune.executors.local import cores_text, plan_slots, start_forkserver

    if workers != "auto" and not workers.isdecimal():
        raise ConfigError(f"--workers {workers}: should be a number, or auto")
    if fork:
        start_forkserver(main="elta_tune.cli")
    with console.status("starting") if console.is_terminal else nullcontext():
        from elta_tune.studies.preflight import configurations, preflight
        from elta_tune.training.devices import available_devices, check_devices

    names = available_devices() if devices == "auto" else [part.strip() for part in devices.split(",") if part.strip()]
    check_devices(names)
    slots = plan_slots(names, None if workers == "auto" else int(workers))
    with preparing(console) as progress:
        dataset = preflight(list(configurations(plan)), cache, progress)
    for line in (*dataset.warnings, *filter(None, [plan.note])):
        errors.print(Text(f"note: {line}", style="yellow"), soft_wrap=True)
    splits = [split for split in (dataset.train, dataset.val, dataset.test, dataset.pool) if split is not None]
    sizes = ", ".join(f"{len(split.ids):,} {split.name}" for split in splits)
    console.print(Text(f"{sizes} images; {cores_text(slots)}"))
    for split in splits:
        if split.left_out:
            left_out = f"note: {split.file}: {len(split.left_out)} images are missing or unreadable and left out"
            errors.print(Text(left_out, style="yellow"), soft_wrap=True)
    return slots


def _supervise(folder: StudyFolder, plan: StudyPlan, cache: Path, slots: list[Slot], files: dict[str, str]) -> None:
    from elta_tune.cli.live import Board, study_view
    from elta_tune.cli.text import console
    from elta_tune.executors.local import LocalExecutor
    from elta_tune.studies.optuna_study import OptunaStudy
    from elta_tune.studies.plan import record_plan
    from elta_tune.studies.supervisor import Supervisor, interruptible
    from elta_tune.trial import commit, versions

    resumed = folder.exists()
    record_plan(
        folder, plan, {"study": folder.name, "backend": "optuna", **files, "packages": versions(), "commit": commit()}
    )
    study = OptunaStudy(folder, plan, cache.absolute())
    supervisor = Supervisor(study, LocalExecutor(slots))
    board = Board(plan, len(slots), folder.results(), seconds_before=study.seconds_run)
    verb = "goes on" if resumed else "starts"
    console.print(f"study {folder.name} {verb}: {board.ended} of {plan.budget.trials} trials done, in {folder.path}\n")
    try:
        with interruptible(supervisor), study_view(board, console, lambda n: folder.trial(n).epochs()) as view:
            for event in supervisor.events():
                view.show(event)
    except KeyboardInterrupt:
        console.print(f"\nkilled; to go on, each trial from its last epoch:\n  {this_command()}")
        raise typer.Exit(130) from None
    tell_outcome(folder, plan)
    if supervisor.stopped == "interrupted":
        console.print(f"stopped; to go on:\n  {this_command()}")
        raise typer.Exit(130)
    if supervisor.stopped == "timeout":
        console.print("the time of the study is used up; to go on: the same command with a larger --timeout")


def tell_outcome(folder: StudyFolder, plan: StudyPlan) -> None:
    """The best trials, where everything lies, and what to type next."""
    from rich.text import Text

    from elta_tune.cli.text import console, counts, metric, trial_table
    from elta_tune.results.best import ranked

    results, ranking = folder.results(), ranked(folder, plan)
    if not results:
        return
    objective = plan.space.objective.metric
    console.print(trial_table((ranking or results)[:SHOWN], objective))
    console.print(Text(f"\n{counts(results)}; all of them: elta-tune show {study_argument(folder)}"), soft_wrap=True)
    if not ranking:
        return
    best, first = ranking[0], next((result for result in ranking if result["trial"] == 0), None)
    gain = f"; trial 0, the recipe as it stands: {metric(first['value'])}" if first else ""
    console.print(Text(f"best: trial {best['trial']}, {objective} {metric(best['value'])}{gain}"))
    console.print(Text(f"folder: {folder.path}"), soft_wrap=True)
    console.print(f"next:\n  elta-tune best {study_argument(folder)} --export ckpt")


def study_argument(folder: StudyFolder) -> str:
    """How the other commands find the study."""
    import os
    import shlex

    default = folder.path.parent == Path("runs").absolute()
    return shlex.quote(folder.name if default else os.path.relpath(folder.path))


def this_command() -> str:
    """The command line, to be typed again."""
    import shlex
    import sys

    return f"elta-tune {shlex.join(sys.argv[1:])}"


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A file, or the name of a recipe that ships.")],
    overrides: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the trial.", show_default="runs/train-RECIPE")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda:0, mps; auto: the first GPU, else the CPU.")] = "auto",
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Runs one trial without a study, in this process: the path to debug. The same command goes on where it was."""
    from elta_tune.cli.live import EpochLines, preparing
    from elta_tune.cli.text import console, duration, metric
    from elta_tune.config import load_recipe
    from elta_tune.documents import find_document

    file = find_document(recipe, "trials")
    config = load_recipe(file, overrides or ())

    from elta_tune.records import TrialFolder
    from elta_tune.studies.preflight import preflight
    from elta_tune.training.devices import available_devices, check_devices
    from elta_tune.trial import run_trial

    device = available_devices()[0] if device == "auto" else device
    check_devices([device])
    with preparing(console) as progress:
        preflight([config], cache, progress)
    folder = TrialFolder((out or Path("runs") / f"train-{file.stem}").absolute())
    try:
        result = run_trial(config, folder, EpochLines(console), cache=cache, device=device)
    except KeyboardInterrupt:
        console.print(f"\nstopped; to go on:\n  {this_command()}")
        raise typer.Exit(130) from None
    told = result["reason"] or f"{config.evaluation.metric} {metric(result['value'])} at step {result['best_step']}"
    console.print(f"{result['state']}: {told}, after {duration(result['seconds'])}\n{folder.path}", markup=False)
    if result["state"] == "failed":
        raise typer.Exit(1)
