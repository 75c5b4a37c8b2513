"""`elta-tune best`, `list` and `show`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Json, Runs, Study
from elta_tune.cli.output import print_json

if TYPE_CHECKING:
    from elta_tune.models.formats.kinds import Kind
    from elta_tune.records import EpochRecord, StudyFolder, TrialFolder, TrialResult
    from elta_tune.studies.plan import StudyPlan


def best(
    study: Study = None,
    export_as: Annotated[
        str | None, typer.Option("--export", metavar="FORMAT", help="ckpt, safetensors, onnx, timm or hf.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "--out", help="The exported file, a folder for hf.", show_default="best.…"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Also measure it on the test split.")] = False,
    all_metrics: Annotated[bool, typer.Option("--all", help="Show all metrics, not just the main ones.")] = False,
    as_json: Json = False,
    runs: Runs = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """The best trial of a study; --export hands over its checkpoint, measured again."""
    from elta_tune import api
    from elta_tune.errors import ConfigError
    from elta_tune.models.formats.kinds import exported_file

    if output is not None and export_as is None:
        raise ConfigError("--output: needs --export FORMAT")
    file = None if export_as is None else exported_file(export_as, output, force)
    found = api.Study.open(study, runs=runs)
    told = api.best(found)
    if file is not None:
        told["checkpoint"] = str(file)
        told["difference"] = found.export(cast("Kind", export_as), file, force, cache=cache)
    if test:
        from elta_tune.data.cache.image_cache import ImageCache
        from elta_tune.results.export import measure_trial

        images = ImageCache(cache)
        measured = measure_trial(found.folder, found.best, "test", cache=images)
        told |= {"test": measured["metrics"], "test_data": measured["data"]["test"]}
        if told["recipe"] and told["recipe"]["state"] == "complete":  # what tuning bought, on images none has seen
            first = found.folder.trial(0).result()
            of_other = first is not None and told["trial"] != 0
            of_recipe = measure_trial(found.folder, first, "test", cache=images) if first and of_other else measured
            told["recipe"]["test"] = of_recipe["metrics"]
    print_json(told) if as_json else _print_best(told, found.best, all_metrics)


def _print_best(told: dict[str, Any], result: TrialResult, all_metrics: bool) -> None:
    from rich.text import Text

    from elta_tune.cli.text import console, main_metrics, metric, number, plain_table, say

    recipe = told["recipe"]
    say(
        f"study {told['study']}: trial {told['trial']}, best at step {told['best_step']} "
        f"(round {told['best_round']}, epoch {told['best_epoch']})"
    )
    columns = {"validation": told["metrics"]}
    if "test" in told:
        columns["test"] = told["test"]
    if recipe and recipe["trial"] != told["trial"]:
        columns["validation of trial 0"] = recipe["metrics"]
        if "test" in recipe:
            columns["test of trial 0"] = recipe["test"]
    elif recipe:
        say("trial 0, the recipe as it stands, is the best trial")
    table = plain_table(["metric", *columns], right=list(columns))
    names = list(dict.fromkeys([told["metric"], *told["metrics"]])) if all_metrics else main_metrics(told["metric"])
    for name in names:
        values = [column.get(name) for column in columns.values()]
        if all_metrics or any(value is not None for value in values):
            table.add_row(name, *(metric(v) if isinstance(v, float) or v is None else str(v) for v in values))
    console.print(table)
    if not all_metrics:
        say(f"  {len(told['metrics'])} metrics in all: --all shows them", style="dim")
    if "test" in told:
        data = told["test_data"]
        say(f"test: {data['rows']} images, {data['origin']} (hash {data['hash']})")
    for name, value in told["params"].items():
        console.print(Text(f"  {name} = {number(value)}"))
    say(f"\ncheckpoint: {told['checkpoint']}")
    if "difference" in told:
        images = result.data["val"].rows if result.data else 0
        apart = f"at most {told['difference']:.1e} apart" if told["difference"] else "equal"
        say(
            f"compared: a new process's predictions of {images} validation images with the trial's, and the exported "
            f"file's outputs with the model's: {apart}"
        )


def list_studies(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """All studies, the last changed last."""
    from elta_tune import api

    rows = api.list_studies(runs)
    if as_json:
        return print_json([row.to_dict() for row in rows])
    from elta_tune.cli.text import console, errors, metric, plain_table, say

    if not rows:
        return say(f"there is no study in {runs}; start one: elta-tune run --space default.yaml")
    table = plain_table(
        ["study", "state", "trials", "pruned", "failed", "metric", "best"], right=["trials", "pruned", "failed", "best"]
    )
    for row in rows:
        is_known = row.ended is not None
        counts = (f"{row.ended}/{row.budget}", str(row.pruned), str(row.failed), str(row.metric), metric(row.value))
        table.add_row(row.study, row.state, *(counts if is_known else ()))
    console.print(table)
    for row in rows:
        if row.reason is not None:
            errors.print(row.reason, style="red", soft_wrap=True)


def show(
    study: Study = None,
    trial: Annotated[int | None, typer.Argument(help="Number of a trial.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """A study's trials, or one trial epoch by epoch. `show 3` is trial 3 of the last study."""
    from elta_tune.records import StudyFolder, open_study
    from elta_tune.studies.plan import read_plan

    if trial is None and (study or "").isdecimal() and not StudyFolder(runs / str(study)).exists():
        study, trial = None, int(str(study))
    folder = open_study(study, runs)
    plan = read_plan(folder)
    if trial is None:
        _show_study(folder, plan, as_json)
    else:
        _show_trial(folder, plan, trial, as_json)


def _show_study(folder: StudyFolder, plan: StudyPlan, as_json: bool) -> None:
    from elta_tune import api

    study = api.Study(folder, plan)
    row, results = api.summarize(study), study.results
    unfinished = [(number, trial.epochs()) for number, trial in folder.trials() if trial.result() is None]
    if as_json:
        running = [{"trial": number, "epochs": _dicts(epochs)} for number, epochs in unfinished]
        return print_json({**row.to_dict(), "results": _dicts(results), "unfinished": running})
    from rich.padding import Padding
    from rich.text import Text

    from elta_tune.cli.text import console, metric, parameters, trial_table

    objective = plan.space.objective
    told = f"{row.ended} of {row.budget} trials, {row.pruned} pruned, {row.failed} failed; {row.state}"
    console.print(
        Text(f"study {folder.name}: {objective.resolved_direction} {objective.metric}; {told}"), soft_wrap=True
    )
    if results:
        console.print(trial_table(results, objective.metric))
    for number, epochs in unfinished:
        step, value = (epochs[-1].step, epochs[-1].value(objective.metric)) if epochs else (0, None)
        told = f"step {step}, {objective.metric} {metric(value)}"
        console.print(Text(f"trial {number} unfinished: {told}"), soft_wrap=True)
        params = Text(parameters(_params(folder.trial(number), plan)), style="dim")
        console.print(Padding(params, (0, 0, 0, 7), expand=False))
    console.print(Text(f"{folder.path}"), soft_wrap=True)


def _dicts(records: Sequence[EpochRecord | TrialResult]) -> list[dict[str, Any]]:
    return [record.to_dict() for record in records]


def _params(trial: TrialFolder, plan: StudyPlan) -> dict[str, Any]:
    """What the study gave a trial, also while that has no result."""
    from elta_tune.config import load_recipe

    if not trial.config_file.exists():
        return {}
    get = load_recipe(trial.config_file).get
    return {name: get(name) for name, parameter in plan.space.parameters.items() if parameter.is_active(get)}


def _show_trial(folder: StudyFolder, plan: StudyPlan, trial_number: int, as_json: bool) -> None:
    from elta_tune.errors import StudyError

    trial = folder.trial(trial_number)
    result, epochs = trial.result(), trial.epochs()
    if not trial.path.exists():
        raise StudyError(f"study {folder.name} has no trial {trial_number}", f"see them: elta-tune show {folder.name}")
    if as_json:
        content = {"result": result and result.to_dict(), "epochs": _dicts(epochs)}
        return print_json({"study": folder.name, "trial": trial_number, **content})
    from rich.text import Text

    from elta_tune.cli.text import console, diagnosed_rounds, epoch_table, number, skipped_rounds

    state = result.state if result else "unfinished"
    why = f": {result.reason}" if result and result.reason else ""
    console.print(Text(f"study {folder.name}, trial {trial_number}: {state}{why}"), soft_wrap=True)
    for name, value in _params(trial, plan).items():
        console.print(Text(f"  {name} = {number(value)}"))
    console.print(epoch_table(epochs, plan.space.objective.metric))
    for told in (*skipped_rounds(result), *diagnosed_rounds(result)) if result else ():
        console.print(Text(told))
    console.print(Text(f"{trial.path}"), soft_wrap=True)
