"""`elta-tune best`, `list` and `show`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Json, Runs, Study
from elta_tune.cli.output import print_json

if TYPE_CHECKING:
    from elta_tune import api
    from elta_tune.models.formats.kinds import Kind
    from elta_tune.records import TrialResult


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
    exported: dict[str, Any] = {}
    if file is not None:
        difference = found.export(cast("Kind", export_as), file, force, cache=cache)
        exported = {"checkpoint": str(file), "difference": difference}
    content = api.best(found, test=test, cache=cache) | exported
    print_json(content) if as_json else _print_best(content, found.best, all_metrics)


def _print_best(content: dict[str, Any], result: TrialResult, all_metrics: bool) -> None:
    from rich.text import Text

    from elta_tune.cli.text import console, main_metrics, metric, number, plain_table, say

    recipe = content["recipe"]
    say(
        f"study {content['study']}: trial {content['trial']}, best at step {content['best_step']} "
        f"(round {content['best_round']}, epoch {content['best_epoch']})"
    )
    columns = {"validation": content["metrics"]}
    if "test" in content:
        columns["test"] = content["test"]
    if recipe and recipe["trial"] != content["trial"]:
        columns["validation of trial 0"] = recipe["metrics"]
        if "test" in recipe:
            columns["test of trial 0"] = recipe["test"]
    elif recipe:
        say("trial 0, the recipe as it stands, is the best trial")
    table = plain_table(["metric", *columns], right=list(columns))
    names = (
        list(dict.fromkeys([content["metric"], *content["metrics"]]))
        if all_metrics
        else main_metrics(content["metric"])
    )
    for name in names:
        values = [column.get(name) for column in columns.values()]
        if all_metrics or any(value is not None for value in values):
            table.add_row(name, *(metric(v) if isinstance(v, float) or v is None else str(v) for v in values))
    console.print(table)
    if not all_metrics:
        say(f"  {len(content['metrics'])} metrics in all: --all shows them", style="dim")
    if "test" in content:
        data = content["test_data"]
        say(f"test: {data['rows']} images, {data['origin']} (hash {data['hash']})")
    for name, value in content["params"].items():
        console.print(Text(f"  {name} = {number(value)}"))
    say(f"\ncheckpoint: {content['checkpoint']}")
    if "difference" in content:
        images = result.data["val"].rows if result.data else 0
        apart = f"at most {content['difference']:.1e} apart" if content["difference"] else "equal"
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
        return say(f"there is no study in {runs}; start one: elta-tune run")
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
    from elta_tune import api
    from elta_tune.records import StudyFolder

    if trial is None and (study or "").isdecimal() and not StudyFolder(runs / str(study)).exists():
        study, trial = None, int(str(study))
    shown = api.Study.open(study, runs=runs)
    if as_json:
        print_json(api.show(shown, trial))
    elif trial is None:
        _show_study(shown)
    else:
        _show_trial(shown, trial)


def _show_study(study: api.Study) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from elta_tune.api import summarize
    from elta_tune.cli.text import console, metric, parameters, say, trial_table

    objective, row = study.plan.space.objective, summarize(study)
    counts = f"{row.ended} of {row.budget} trials, {row.pruned} pruned, {row.failed} failed; {row.state}"
    say(f"study {row.study}: {objective.resolved_direction} {objective.metric}; {counts}")
    if results := study.results:
        console.print(trial_table(results, objective.metric))
    for number, epochs in study.unfinished:
        step, value = (epochs[-1].step, epochs[-1].value(objective.metric)) if epochs else (0, None)
        say(f"trial {number} unfinished: step {step}, {objective.metric} {metric(value)}")
        params = Text(parameters(study.params(number)), style="dim")
        console.print(Padding(params, (0, 0, 0, 7), expand=False))
    say(str(study.path))


def _show_trial(study: api.Study, trial_number: int) -> None:
    from rich.text import Text

    from elta_tune.cli.text import console, diagnosed_rounds, epoch_table, number, say, skipped_rounds

    trial = study.trial(trial_number)
    result, epochs = trial.result(), trial.epochs()
    state = result.state if result else "unfinished"
    why = f": {result.reason}" if result and result.reason else ""
    say(f"study {study.folder.name}, trial {trial_number}: {state}{why}")
    for name, value in study.params(trial_number).items():
        console.print(Text(f"  {name} = {number(value)}"))
    console.print(epoch_table(epochs, study.plan.space.objective.metric))
    for line in (*skipped_rounds(result), *diagnosed_rounds(result)) if result else ():
        console.print(Text(line))
    say(str(trial.path))
