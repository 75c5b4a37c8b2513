"""`elta-tune evaluate`, `predict`, `export` and `sharpen`: what one does with a model that is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import MODEL, Cache, Device, Force, Head, Json, Runs, Set, SetData
from elta_tune.cli.output import encodable_json, print_json, printable, stop_without_output

if TYPE_CHECKING:
    from elta_tune.data.splits import LabelledName
    from elta_tune.models.checkpoint import Checkpoint
    from elta_tune.models.formats.kinds import Kind
    from elta_tune.models.released import Head as ReleasedHead
    from elta_tune.results.predict import Prediction
    from elta_tune.results.sharpen import Sharpened


def evaluate(
    model: Annotated[str | None, MODEL] = None,
    csv: Annotated[Path | None, typer.Option(help="Rating file of other images.")] = None,
    images: Annotated[Path | None, typer.Option(help="Their folder.", show_default="images/ next to it")] = None,
    split: Annotated[str | None, typer.Option(help="val, test or train of its own data.", show_default="val")] = None,
    from_predictions: Annotated[Path | None, typer.Option(help="Predictions that exist: no model is needed.")] = None,
    head: Head = None,
    predictions: Annotated[Path | None, typer.Option(help="Write the predictions to this CSV file.")] = None,
    force: Force = False,
    overrides: SetData = None,
    as_json: Json = False,
    device: Device = "auto",
    runs: Runs = Path("runs"),
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """All metrics of a model on labelled images, or of a file of predictions (image_id, gt, score, score2 …)."""
    from elta_tune import api
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import errors
    from elta_tune.config import read_overrides

    with preparing(errors) as progress:
        found = api.evaluate(
            model,
            split=cast("LabelledName | None", split),
            csv=csv,
            images=images,
            from_predictions=from_predictions,
            head=cast("ReleasedHead | None", head),
            predictions=predictions,
            force=force,
            overrides=read_overrides(overrides or ()),
            device=device,
            runs=runs,
            cache=cache,
            progress=progress,
        )
    _print_note(model, found.note)
    content = {"model": model, "split": None if csv or from_predictions else split or "val", "data": found.data}
    content |= {
        name: getattr(found.yardstick, name) for name in ("scale", "threshold", "tail_cuts", "higher_is_better")
    }
    _print_metrics({**content, "metrics": found.metrics}, as_json)


def predict(
    model: Annotated[str, MODEL],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images, folders, or tables with image ids.")],
    out: Annotated[Path | None, typer.Option(help="Write FILE.csv, FILE.jsonl or FILE.parquet.")] = None,
    force: Force = False,
    images: Annotated[Path | None, typer.Option(help="Folder of a table's images.")] = None,
    sort: Annotated[bool, typer.Option("--sort", help="Best first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines on standard output.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images at a time.")] = None,
    head: Head = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.columns.id=NAME", help="Column of the image ids in tables."),
    ] = None,
    device: Device = "auto",
    runs: Runs = Path("runs"),
) -> None:
    """Scores images: one line each, with the reason where one has no score."""
    from elta_tune import api
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import errors
    from elta_tune.config import read_overrides
    from elta_tune.errors import ConfigError
    from elta_tune.models.outputs import check_output
    from elta_tune.results.tables import check_table, write_table

    if out is not None and as_json:
        raise ConfigError("predict: --json and --out exclude each other")
    if out is not None:
        check_table(out)
        check_output(out, force, "out")
    checkpoint = _load(model, runs, head)
    count = failed = 0

    def counted(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
        nonlocal count, failed
        for one in predictions:
            count, failed = count + 1, failed + (one.reason is not None)
            yield one

    with preparing(errors) as progress:
        rows = counted(
            api.predict(
                checkpoint,
                paths,
                images=images,
                overrides=read_overrides(overrides or ()),
                device=device,
                batch_size=batch_size,
                sort=sort,
                on_note=lambda note: errors.print(f"note: {note}", style="yellow", soft_wrap=True),
                progress=progress,
            )
        )
        if out is not None:
            write_table(out, rows, 0 if checkpoint.bins is None else len(checkpoint.bins))
        else:
            for one in rows:
                print(_line(one, as_json), flush=True)
                stop_without_output()
    if failed:
        note = f"note: {failed:,} of {count:,} images could not be scored (see column `reason`)"
        errors.print(note, style="yellow", soft_wrap=True)


def export(
    model: Annotated[str, MODEL],
    kind: Annotated[str, typer.Argument(metavar="FORMAT", help="ckpt, safetensors, onnx, timm or hf.")],
    output: Annotated[
        Path | None, typer.Option("--output", "--out", help="What to write.", show_default="best.…")
    ] = None,
    force: Force = False,
    head: Head = None,
    runs: Runs = Path("runs"),
) -> None:
    """Any model in another format, read back and compared; a checkpoint of ELTA's released code, too."""
    from elta_tune import api
    from elta_tune.cli.text import say

    written = api.export(
        model, cast("Kind", kind), output, force=force, head=cast("ReleasedHead | None", head), runs=runs
    )
    _print_note(model, written.note)
    result = f"differ by at most {written.difference:.1e}" if written.difference else "are equal"
    say(f"{written.file}\ncompared: the outputs of the file and of the model for random images {result}")


def _load(model: str, runs: Path, head: str | None) -> Checkpoint:
    from elta_tune.results.sources import load_model

    checkpoint = load_model(model, runs, cast("ReleasedHead | None", head))
    _print_note(model, checkpoint.note)
    return checkpoint


def _print_note(model: str | None, text: str | None) -> None:
    from elta_tune.cli.text import note

    if text is not None:
        note(f"{model}: {text}")


def sharpen(
    logits: Annotated[
        Path, typer.Argument(metavar="LOGITS.csv", help="Predictions: image_id, score, score2, score3 …")
    ],
    holdout: Annotated[
        str, typer.Option(metavar="FILE|SHARE", help="Predictions with gt to judge by, or a share of LOGITS.csv.")
    ] = "0.5",
    space: Annotated[str, typer.Option(help="Search space, of which sharpening varies.")] = "default.yaml",
    metric: Annotated[str, typer.Option(help="Of the hold-out's pseudo-labels: balanced, bmae, srcc, …")] = "balanced",
    trials: Annotated[int, typer.Option(min=1, help="Temperatures and thresholds to try.")] = 200,
    out: Annotated[Path, typer.Option(help="The pseudo-labels.")] = Path("pseudo_labels.csv"),
    force: Force = False,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Searches temperature and threshold of the sharpening on predictions that exist, and writes the pseudo-labels."""
    from elta_tune import api
    from elta_tune.config import read_overrides

    found = api.sharpen(
        logits,
        holdout=_share_or_file(holdout),
        space=space,
        metric=metric,
        trials=trials,
        out=out,
        force=force,
        overrides=read_overrides(overrides or ()),
    )
    _print_sharpening(found, metric, out, as_json)


def _share_or_file(text: str) -> Path | float:
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _print_sharpening(found: Sharpened, metric: str, out: Path, as_json: bool) -> None:
    from elta_tune.cli.text import console, number, plain_table
    from elta_tune.cli.text import metric as figure

    labels, selection = found.labels, found.labels.selection
    if as_json:
        choices = {"best": asdict(found.best), "recipe": found.recipe and asdict(found.recipe)}
        counts = {"images": selection.pool_size, "selected": len(selection.rows)}
        pool = {**counts, "spread": labels.spread, "pool_spread": labels.pool_spread, "diagnosis": labels.diagnosis}
        measured = {name: getattr(found.yardstick, name) for name in ("scale", "tail_cuts", "higher_is_better")}
        return print_json({**choices, **measured, "left_out": found.left_out, "pool": pool, "pseudo_labels": str(out)})
    for name, value in found.best.params.items():
        console.print(f"  {name} = {number(value)}")
    columns = {"best": found.best} | ({"recipe": found.recipe} if found.recipe else {})
    table = plain_table(["on the hold-out", *columns], right=list(columns))
    table.add_row("selected", *(f"{choice.selected:,} of {choice.images:,}" for choice in columns.values()))
    table.add_row(metric, *(figure(choice.value) for choice in columns.values()))
    for name in ("srcc", "mae_low", "mae_mid", "mae_high"):
        table.add_row(name, *(figure(choice.metrics[name]) for choice in columns.values()))
    console.print(table)
    if found.left_out:
        console.print(f"{found.left_out:,} images could not be scored and are left out")
    by_segment = ", ".join(f"{count:,} of {labels.pool_spread[name]:,} {name}" for name, count in labels.spread.items())
    console.print(
        f"{len(selection.rows):,} of {selection.pool_size:,} images are pseudo-labelled: {by_segment}", soft_wrap=True
    )
    if labels.diagnosis:
        figures = ", ".join(f"{name} {figure(labels.diagnosis[name])}" for name in ("mae", "srcc"))
        console.print(f"against the gt of these images, which was not read for the choice: {figures}", soft_wrap=True)
    console.print(str(out), soft_wrap=True)


def _line(prediction: Prediction, as_json: bool) -> str:
    from elta_tune.cli.text import metric
    from elta_tune.results.tables import json_line

    if as_json:
        return encodable_json(json_line(prediction))
    reason = f"  ({prediction.reason})" if prediction.reason else ""
    return f"{metric(prediction.score):>8}  {printable(prediction.image_id + reason)}"


def _print_metrics(content: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return print_json(content)
    from rich.text import Text

    from elta_tune.cli.text import console, metric, plain_table

    data, (low, high) = content["data"], content["scale"]
    left_out = f", {data['left_out']} left out" if data.get("left_out") else ""
    hashed = f", hash {data['hash']}" if "hash" in data else ""
    console.print(Text(f"{data['file']}: {data['rows']:,} images{left_out}{hashed}"), soft_wrap=True)
    side = "above" if content.get("higher_is_better", True) else "below"
    console.print(f"rating scale {low:g}…{high:g}; a score {side} {content['threshold']:g} is beautiful")
    table = plain_table(["metric", "value"], right=["value"])
    for name, value in content["metrics"].items():
        table.add_row(name, metric(value) if isinstance(value, float) else str(value))
    console.print(table)
    if content["tail_cuts"] is None:
        console.print("no metrics of the tails: the training split is unknown\n  name its file: --set data.train=FILE")
