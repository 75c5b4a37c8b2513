"""Every verb of the command as a typed function: `run`, `train`, `show`, `best`, `evaluate`, `predict`, `export`, …

They print nothing, and raise `elta_tune.errors.EltaTuneError` where the command refuses. Slow imports are in the
functions that need them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from elta_tune.data.cache.progress import no_progress

if TYPE_CHECKING:
    import pandas as pd

    from elta_tune.config import TrialConfig
    from elta_tune.data.cache.image_cache import ImageCache
    from elta_tune.data.cache.inventory import Entry
    from elta_tune.data.cache.progress import Progress
    from elta_tune.data.splits import LabelledName
    from elta_tune.errors import EltaTuneError, Settings
    from elta_tune.models.checkpoint import Checkpoint
    from elta_tune.models.formats.kinds import Kind
    from elta_tune.models.released import Head
    from elta_tune.records import EpochRecord, StudyFolder, TrialFolder, TrialResult
    from elta_tune.results.evaluate import Evaluation
    from elta_tune.results.predict import Prediction
    from elta_tune.results.sharpen import Sharpened
    from elta_tune.studies.backend import WebUI
    from elta_tune.studies.events import Event
    from elta_tune.studies.plan import StudyPlan

DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elta-tune"
"""Folder of decoded images, shared by all studies, unless the environment's ELTA_TUNE_CACHE names another."""
RUNS = Path("runs")
"""Folder of the studies."""

File = str | os.PathLike[str]


@dataclass(frozen=True)
class Study:
    """A study on disk, whichever back end ran it."""

    folder: StudyFolder
    plan: StudyPlan

    @classmethod
    def open(cls, name: File | None = None, *, runs: File = RUNS) -> Study:
        """A study by its folder or its name; left out, the last one.

        Raises:
            StudyError: there is none.
        """
        from elta_tune.records import StudyFolder, open_study
        from elta_tune.studies.plan import read_plan

        found = open_study(None if name is None else os.fspath(name), Path(runs))
        folder = StudyFolder(found.path.absolute())  # it stays the study's if the script changes its directory
        return cls(folder, read_plan(folder))

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder.path

    @property
    def results(self) -> list[TrialResult]:
        """The results of all trials that ended, by number."""
        return self.folder.results()

    @property
    def best(self) -> TrialResult:
        """The result of the best complete trial.

        Raises:
            StudyError: no trial is complete.
        """
        from elta_tune.results.ranking import best_result

        return best_result(self.folder, self.plan)

    def trial(self, number: int) -> TrialFolder:
        """The folder of a trial.

        Raises:
            StudyError: the study has no such trial.
        """
        from elta_tune.errors import StudyError

        trials = dict(self.folder.trials())
        if number not in trials:
            hint = f"its trials are {min(trials)} to {max(trials)}" if trials else None
            raise StudyError(f"study {self.folder.name} has no trial {number}", hint)
        return trials[number]

    def params(self, number: int) -> dict[str, Any]:
        """What the study gave a trial, also before it has a result."""
        from elta_tune.config import load_recipe

        file = self.trial(number).config_file
        if not file.exists():
            return {}
        get = load_recipe(file).get
        return {name: get(name) for name, each in self.plan.space.parameters.items() if each.is_active(get)}

    @property
    def unfinished(self) -> list[tuple[int, list[EpochRecord]]]:
        """Number and epochs of each trial without a result."""
        return [(number, trial.epochs()) for number, trial in self.folder.trials() if trial.result() is None]

    def dataframe(self) -> pd.DataFrame:
        """One row per trial that ended: its place and state, its parameters and metrics by their names."""
        import pandas as pd

        names = ("trial", "state", "value", "best_step", "best_round", "best_epoch", "seconds", "reason")
        return pd.DataFrame(
            [{**{name: getattr(row, name) for name in names}, **row.params, **row.metrics} for row in self.results]
        )

    def export(self, kind: Kind, output: File, force: bool = False, *, cache: File | None = None) -> float:
        """Writes the best trial's model, after a new process has measured it again on the validation split.

        Args:
            kind: ckpt, safetensors, onnx, timm or hf.
            output: the file, a folder for hf.
            force: replaces what is there.

        Returns:
            The largest difference of a predicted score from the trial's.

        Raises:
            StudyError: there is something at `output`, no trial is complete, or the file predicts otherwise.
        """
        from elta_tune.models.formats.kinds import exported_file

        file = exported_file(kind, Path(output), force)
        best = self.best
        from elta_tune.results.export import export

        return export(self.folder, best, file, kind, cache=_image_cache(cache))


def run(
    space: File = "default.yaml",
    recipe: File = "demo.yaml",
    *,
    overrides: Settings | None = None,
    trials: int | None = None,
    timeout: float | str | None = None,
    seed: int | None = None,
    name: str | None = None,
    runs: File = RUNS,
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    backend: str | None = None,
    executor: str = "local",
    cache: File | None = None,
    on_event: Callable[[Event], None] | None = None,
    progress: Progress | None = None,
) -> Study:
    """Starts a study, or continues it, until its budget is used.

    Each trial runs in a process of its own. What ends the call early (Ctrl-C, an exception of `on_event`) ends the
    trials at once, and the same call goes on, each trial from its last epoch.

    Args:
        space, recipe: a file, or the name of one that ships.
        overrides: other values of the recipe's fields, by dotted names: `{"training.epochs": 10}`.
        trials, timeout: the budget, which a study that is there takes only larger; seconds, or text such as 90m.
        seed: of the trainings and the sampler.
        name: of the study; left out, `SPACE-RECIPE`.
        runs: folder of the studies.
        workers: trials at a time; None: one per device.
        devices: cpu, cuda:0, cuda:1, mps; None: every GPU, else the CPU.
        backend: optuna or nni; None: the study's own, optuna for a new one.
        executor: local, a process per trial; inline, this process, one trial at a time, for `breakpoint()`.
        cache: folder of decoded images; None: the command's.
        on_event: is called with what happens, each epoch too; its errors end the call.
        progress: hears (done, total, what) while images are decoded.

    Raises:
        EltaTuneError: the study can't start or go on: why, and what to change.
    """
    from elta_tune.errors import ConfigError
    from elta_tune.space.space import parse_duration
    from elta_tune.studies.backend import LaunchOptions
    from elta_tune.studies.events import Tick
    from elta_tune.studies.launch import ended_too_early, launch
    from elta_tune.studies.request import request_study, resolve_plan

    if trials is not None and trials < 1:
        raise ConfigError(f"`trials={trials}`: should be 1 or more")
    request = request_study(
        os.fspath(space),
        os.fspath(recipe),
        overrides or {},
        seed=seed,
        name=name,
        runs=Path(runs),
        backend=backend,
        trials=trials,
        timeout=None if timeout is None else parse_duration(str(timeout), "timeout"),
    )
    options = LaunchOptions(
        cache=_cache(cache),
        preparing=nullcontext(progress or no_progress),
        workers=workers,
        devices=[devices] if isinstance(devices, str) else devices,
        executor=executor,
    )
    while True:
        with launch(request, options) as running:
            if running is not None:
                with closing(running.events()) as events:
                    for event in events:
                        if on_event is not None and not isinstance(event, Tick):
                            on_event(event)
        if running is None or not ended_too_early(running):
            return Study(request.folder, resolve_plan(request))


@dataclass(frozen=True)
class CallbackReporter:
    """Hands each epoch to a function; never prunes."""

    on_epoch: Callable[[EpochRecord], None] | None

    def report(self, record: EpochRecord) -> None:
        """Calls the function."""
        if self.on_epoch is not None:
            self.on_epoch(record)


def find_recipe(
    recipe: File | TrialConfig | None = None,
    *,
    source: File | None = None,
    overrides: Settings | None = None,
    runs: File = RUNS,
) -> tuple[TrialConfig, str]:
    """What `train` trains, and a short name for it.

    Raises:
        EltaTuneError: there is none, or both are named.
    """
    from elta_tune.config import TrialConfig
    from elta_tune.errors import ConfigError

    if (recipe is None) == (source is None):
        raise ConfigError("train: name either a recipe, or `source=STUDY[:TRIAL]`")
    if recipe is not None:
        return _recipe(recipe, overrides), "recipe" if isinstance(recipe, TrialConfig) else Path(recipe).stem
    from elta_tune.results.sources import find_trial

    trial = find_trial(os.fspath(source or ""), Path(runs))
    return _recipe(trial.folder.config_file, overrides), trial.name


def train(
    recipe: File | TrialConfig | None = None,
    *,
    source: File | None = None,
    overrides: Settings | None = None,
    out: File | None = None,
    runs: File = RUNS,
    device: str = "auto",
    cache: File | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_ready: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> TrialResult:
    """Runs one trial without a study, in this process. The same call goes on where it was.

    Args:
        recipe: a file, the name of one that ships, or a `TrialConfig`.
        source: instead of it, STUDY:TRIAL or STUDY (its best), whose configuration is trained again.
        overrides: other values of its fields, by dotted names.
        out: folder of the trial; left out, `train-RECIPE` in `runs`.
        runs: folder of the studies.
        device: cpu, cuda:0, mps; auto: the first GPU, else the CPU.
        cache: folder of decoded images; None: the command's.
        on_epoch: is called with each epoch.
        on_ready: is called when the data are prepared, before the first epoch.
        progress: hears (done, total, what) while images are decoded.

    Returns:
        How it ended: complete, or failed if the loss is not finite or the memory is used up.

    Raises:
        EltaTuneError: recipe, data, model or folder do not allow the training to start.
    """
    config, name = find_recipe(recipe, source=source, overrides=overrides, runs=runs)
    from elta_tune.training.devices import choose_device

    device, images = choose_device(device), _image_cache(cache)
    from elta_tune.records import TrialFolder
    from elta_tune.records.owner import refuse_owned_trial
    from elta_tune.studies.preflight import preflight
    from elta_tune.trial import run_trial

    folder = TrialFolder((Path(runs) / f"train-{name}" if out is None else Path(out)).absolute())
    refuse_owned_trial(folder.path)
    preflight([config], images, progress or no_progress, [device])
    if on_ready is not None:
        on_ready()
    with folder.lock():
        return run_trial(config, folder, CallbackReporter(on_epoch), cache=images, device=device)


def evaluate(
    model: File | Checkpoint | None = None,
    *,
    split: LabelledName | None = None,
    csv: File | None = None,
    images: File | None = None,
    from_predictions: File | None = None,
    head: Head | None = None,
    predictions: File | None = None,
    force: bool = False,
    overrides: Settings | None = None,
    device: str = "auto",
    runs: File = RUNS,
    cache: File | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """All metrics of a model on labelled images, with its predictions; or of predictions that exist.

    Args:
        model: an exported file (ckpt or safetensors) or folder (hf), a checkpoint of ELTA's released code, STUDY (its
            best trial), STUDY:TRIAL or a trial's folder.
        split: val, test or train of the model's own data; left out, val.
        csv: a rating file of other images instead, all of which are measured.
        images: their folder; left out, `images/` next to it.
        from_predictions: instead of a model, a file of image_id, gt, score[, score2 …].
        head: emd or mse, of a checkpoint of the released code, which holds both; left out, the one that was trained, or
            emd where that is unknown (its `note` says so).
        predictions: a CSV file for the predictions.
        force: replaces an existing file.
        overrides: other values of the recipe's `data` fields, by dotted names; of predictions: scale, threshold and the
            training file (train, ratings or root; with it format, columns and split).
        device: cpu, cuda:0, mps; auto: the first GPU, else the CPU.
        runs: folder of the studies.
        cache: folder of decoded images; None: the command's.
        progress: hears (done, total, what).

    Raises:
        EltaTuneError: there is no such model, split or file, or its data can't be read.
    """
    from elta_tune.errors import ConfigError

    if from_predictions is not None and (csv or images or split or head):
        raise ConfigError("evaluate: `csv`, `images`, `split` and `head` are for a model, not for `from_predictions`")
    if csv is not None and split is not None:
        raise ConfigError("evaluate: `csv` and `split` exclude each other")
    if images is not None and csv is None:
        raise ConfigError("`images`: needs `csv=FILE`; for a split of the model's own data: `data.images=FOLDER`")
    if split not in (None, "val", "test", "train"):
        raise ConfigError(f"`split={split}`: should be val, test or train")
    from elta_tune.files import write_csv
    from elta_tune.models.outputs import check_output, naming_unwritable
    from elta_tune.results.evaluate import (
        data_with,
        evaluate_model,
        evaluate_predictions,
        predictions_data,
        table_data,
    )
    from elta_tune.training.devices import choose_device

    if predictions is not None:
        check_output(Path(predictions), force, "predictions")
    if model is None and from_predictions is not None:
        found = evaluate_predictions(Path(from_predictions), predictions_data(overrides or {}))
    elif model is None or from_predictions is not None:
        raise ConfigError("evaluate: name either a model, or `from_predictions=FILE`")
    else:
        checkpoint = _checkpoint(model, runs, head)
        if csv is not None:
            split = "test"
            data = table_data(checkpoint, Path(csv), None if images is None else Path(images), overrides or {})
        else:
            data = data_with(checkpoint.config, overrides or {})
        found = evaluate_model(
            checkpoint,
            data,
            split or "val",
            cache=_image_cache(cache),
            device=choose_device(device),
            progress=progress or no_progress,
        )
    if predictions is not None:
        with naming_unwritable(Path(predictions)):
            write_csv(Path(predictions), found.predictions.to_frame())
    return found


def predict(
    model: File | Checkpoint,
    paths: File | Sequence[File],
    *,
    images: File | None = None,
    head: Head | None = None,
    overrides: Settings | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    sort: bool = False,
    runs: File = RUNS,
    on_note: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[Prediction]:
    """Scores images, as they come; what can't be read has a reason instead of a score.

    Args:
        model, head: as in `evaluate`.
        paths: images, folders (with all below them), or tables with image ids.
        images: folder of the images of tables.
        overrides: how to read tables: `{"data.columns.id": NAME}`, the column of image ids.
        device: cpu, cuda:0, mps; auto: the first GPU, else the CPU.
        batch_size: images at a time, 1 or more; None: the model's own for evaluation.
        sort: best first, once all are scored.
        runs: folder of the studies.
        on_note: called with a line about the files of a folder that are not used.
        progress: hears (done, total, what).

    Raises:
        EltaTuneError: there is no such model, path or device, or an argument has no effect.
    """
    from elta_tune.config import TrialConfig
    from elta_tune.errors import ConfigError
    from elta_tune.results.evaluate import data_with
    from elta_tune.results.predict import best_first, list_images, predict_images
    from elta_tune.training.devices import choose_device

    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"`batch_size={batch_size}`: should be 1 or more")
    named = [paths] if isinstance(paths, str | os.PathLike) else paths
    data = data_with(TrialConfig(), overrides or {}, only=["data.columns.id"])
    files = list_images([Path(path) for path in named], None if images is None else Path(images), data, on_note)
    checkpoint, device = _checkpoint(model, runs, head), choose_device(device)
    predictions = predict_images(
        checkpoint, files, device=device, batch_size=batch_size, progress=progress or no_progress
    )
    return iter(best_first(predictions, checkpoint.higher_is_better)) if sort else predictions


def repair(study: File | None = None, *, runs: File = RUNS, cache: File | None = None) -> list[str]:
    """Rebuilds the damaged results of a study from the rest of their folders, and sets a damaged database aside.

    What is sound stays as it is, and a damaged file is kept under another name.

    Args:
        study: its folder or its name under `runs`; left out, the last one.

    Returns:
        What was done, a line for each damaged file.

    Raises:
        StudyError: there is no such study, it runs, or a file of it can't be read.
    """
    from elta_tune.records import open_study
    from elta_tune.studies.repair import repair_study

    folder = open_study(None if study is None else os.fspath(study), Path(runs))
    return list(repair_study(folder, _cache(cache)))


def show(study: Study | File | None = None, trial: int | None = None, *, runs: File = RUNS) -> dict[str, Any]:
    """A study with its trials, or one trial epoch by epoch, as plain values.

    Args:
        study: its folder or its name under `runs`; left out, the last one.
        trial: number of a trial; None: all trials.

    Raises:
        StudyError: there is no such study or trial, or a file of it is damaged.
    """
    shown = study if isinstance(study, Study) else Study.open(study, runs=runs)
    if trial is None:
        running = [{"trial": number, "epochs": _dicts(epochs)} for number, epochs in shown.unfinished]
        return {**summarize(shown).to_dict(), "results": _dicts(shown.results), "unfinished": running}
    folder = shown.trial(trial)
    result = folder.result()
    content = {"result": result and result.to_dict(), "epochs": _dicts(folder.epochs())}
    return {"study": shown.folder.name, "trial": trial, **content}


def _dicts(records: Sequence[EpochRecord | TrialResult]) -> list[dict[str, Any]]:
    return [record.to_dict() for record in records]


def best(
    study: Study | File | None = None, *, test: bool = False, runs: File = RUNS, cache: File | None = None
) -> dict[str, Any]:
    """The best trial of a study, as plain values: value, parameters, metrics, checkpoint; and trial 0, the recipe
    without changes.

    Args:
        study: its folder or its name under `runs`; left out, the last one.
        test: also measures both trials on the test split.
        cache: folder of decoded images; None: the command's.

    Raises:
        StudyError: there is no such study, or no trial of it is complete.
    """
    found = study if isinstance(study, Study) else Study.open(study, runs=runs)
    result, recipe = found.best, found.folder.trial(0).result()
    folder = found.folder.trial(result.trial or 0)
    names = ("trial", "value", "best_step", "best_round", "best_epoch", "params", "metrics")
    content = {
        "study": found.folder.name,
        "metric": found.plan.space.objective.metric,
        **{name: getattr(result, name) for name in names},
        "checkpoint": str(folder.best_file),
        "config": str(folder.config_file),
        "recipe": recipe and {name: getattr(recipe, name) for name in ("trial", "state", "value", "metrics")},
    }
    if test:
        from elta_tune.results.export import measure_trial

        images = _image_cache(cache)
        measured = measure_trial(found.folder, result, "test", cache=images)
        content |= {"test": measured["metrics"], "test_data": measured["data"]["test"]}
        if recipe and recipe.state == "complete":
            is_other = recipe.trial != result.trial
            of_recipe = measure_trial(found.folder, recipe, "test", cache=images) if is_other else measured
            content["recipe"]["test"] = of_recipe["metrics"]
    return content


@dataclass(frozen=True)
class Exported:
    """A written model; `difference` is the largest one between what the file, read back, and the model predict."""

    file: Path
    difference: float
    note: str | None
    """What the user should know of the model."""


def export(
    model: File | Checkpoint,
    kind: Kind,
    output: File | None = None,
    *,
    force: bool = False,
    head: Head | None = None,
    runs: File = RUNS,
) -> Exported:
    """Writes any model in another format, reads it back and compares.

    Args:
        model, head: as in `evaluate`.
        kind: ckpt, safetensors, onnx, timm or hf.
        output: the file, a folder for hf; left out, `best.…` in this folder.
        force: replaces an existing file.
        runs: folder of the studies.

    Raises:
        EltaTuneError: there is no such model or format, the output exists, or it predicts something else.
    """
    from elta_tune.models.formats.kinds import exported_file

    file = exported_file(kind, None if output is None else Path(output), force)
    from elta_tune.models.formats.convert import write_model

    checkpoint = _checkpoint(model, runs, head)
    return Exported(file, write_model(checkpoint, file, kind), checkpoint.note)


def sharpen(
    predictions: File,
    *,
    holdout: File | float = 0.5,
    space: File = "default.yaml",
    metric: str = "balanced",
    trials: int = 200,
    out: File | None = None,
    force: bool = False,
    overrides: Settings | None = None,
) -> Sharpened:
    """Searches temperature and threshold of the sharpening on existing predictions.

    Args:
        predictions: a file of image_id, score, score2, score3 …: the pool.
        holdout: a file of predictions with gt, by which choices are judged, or a share of `predictions`.
        space: a search space, of which the parameters of sharpening vary.
        metric: of the pseudo-labels of the hold-out: balanced, or a metric that compares scores.
        trials: temperatures and thresholds to try.
        out: a file for the pseudo-labels.
        force: replaces an existing file.
        overrides: other values of the recipe's fields, by dotted names.

    Raises:
        EltaTuneError: a file or an argument is wrong, or nothing that was tried selects enough of both tails.
    """
    from elta_tune.config import TrialConfig
    from elta_tune.documents import find_document
    from elta_tune.errors import ConfigError
    from elta_tune.models.outputs import check_output, naming_unwritable

    if isinstance(holdout, float) and not 0 < holdout < 1:
        raise ConfigError(f"`holdout={holdout:g}`: should be a file, or a share between 0 and 1")
    if out is not None:
        check_output(Path(out), force, "out")
    from elta_tune.files import write_csv
    from elta_tune.results.sharpen import load_sharpening, sharpen_predictions

    recipe = TrialConfig().replace({"self_training.rounds": 1, **(overrides or {})}, source="`overrides`")
    searched = load_sharpening(find_document(os.fspath(space), "search_spaces"), recipe)
    judge = holdout if isinstance(holdout, float) else Path(holdout)
    found = sharpen_predictions(Path(predictions), judge, searched, recipe, metric=metric, trials=trials)
    if out is not None:
        with naming_unwritable(Path(out)):
            write_csv(Path(out), found.labels.selection.to_frame())
    return found


@dataclass(frozen=True)
class DataCheck:
    """What a study would be trained on, and why it would be refused.

    `report` is the data in numbers, as plain values; `notes` are what the user should know.
    """

    report: dict[str, Any]
    refusals: Sequence[EltaTuneError]
    notes: Sequence[str]


def check_data(
    recipe: File,
    *,
    overrides: Settings | None = None,
    labels_only: bool = False,
    limit_gb: float | None = None,
    cache: File | None = None,
    progress: Progress | None = None,
) -> DataCheck:
    """Checks the data of a recipe as a study does. Images that are not in the cache are decoded.

    Args:
        recipe: a file, or the name of one that ships.
        overrides: other values of its fields, by dotted names.
        labels_only: looks at no image.
        limit_gb: most gigabytes that may be written to the cache.
        cache: folder of decoded images; None: the command's.
        progress: is called with (done, total, what).

    Raises:
        EltaTuneError: the recipe is wrong, or there is no room for the decoded images.
    """
    from elta_tune.data.report import describe

    config, images, show = _recipe(recipe, overrides), _image_cache(cache), progress or no_progress
    if labels_only:  # which needs no torch
        from elta_tune.data.check import examine

        examined = examine(config.data, images, show, recipes=[config], labels_only=True)
    else:
        from elta_tune.studies import preflight

        examined = preflight.check([config], images, show, limit=_bytes(limit_gb))
    return DataCheck(describe(examined), examined.refusals, examined.notes)


def decode_images(
    recipe: File,
    *,
    overrides: Settings | None = None,
    limit_gb: float | None = None,
    dry_run: bool = False,
    cache: File | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Decodes the images of a recipe, once for all studies.

    Args:
        recipe, overrides, limit_gb, cache, progress: as in `check_data`.
        dry_run: only looks how much there is to decode.

    Returns:
        What is in the cache afterwards, as plain values.

    Raises:
        EltaTuneError: recipe or data are wrong, or decoding takes more than the limit or than is free on the disk.
    """
    from elta_tune.data.images import decode_missing, locate_images, look_up_images
    from elta_tune.data.report import describe_cache
    from elta_tune.data.resolve import resolve

    show, images = progress or no_progress, _image_cache(cache)
    data = resolve(_recipe(recipe, overrides).data, images, show)
    located = locate_images(data.config, data.ratings.all)
    cached = look_up_images(located, data.config, images)
    if not dry_run:
        cached = decode_missing(cached, images, show, _bytes(limit_gb))
    return describe_cache(located, cached, images)


def list_cache(cache: File | None = None) -> list[Entry]:
    """All parts of the cache of decoded images, the last used first."""
    return _image_cache(cache).entries()


def remove_from_cache(key: str, cache: File | None = None) -> Entry:
    """Removes a part of the cache; returns what it was.

    Raises:
        DataError: there is no such part, it is being written, or it can't be removed.
    """
    return _image_cache(cache).remove(key)


@dataclass(frozen=True)
class SpaceCheck:
    """The plan of a study of a space and a recipe, and why it can't start; without `has_data` no data were checked."""

    plan: StudyPlan
    refusals: Sequence[EltaTuneError]
    has_data: bool


def check_space(
    space: File,
    recipe: File = "demo.yaml",
    *,
    overrides: Settings | None = None,
    cache: File | None = None,
    progress: Progress | None = None,
) -> SpaceCheck:
    """Checks a search space against a recipe and the labels of its data. No image is looked at, and no model built.

    Raises:
        ConfigError: a file or an override is wrong, or the space does not fit the recipe.
    """
    plan = _plan(space, recipe, overrides)
    data = plan.recipe.data
    if data.demo is not None:  # drawn by the study; nothing in it can be wrong
        return SpaceCheck(plan, (), has_data=True)
    if data.root is None and data.ratings is None and data.train is None:
        return SpaceCheck(plan, (), has_data=False)
    from elta_tune.data.check import examine
    from elta_tune.studies.plan import configurations

    recipes = list(configurations(plan))
    examined = examine(data, _image_cache(cache), progress or no_progress, recipes=recipes, labels_only=True)
    return SpaceCheck(plan, examined.refusals, has_data=True)


def _plan(space: File, recipe: File, overrides: Settings | None) -> StudyPlan:
    from elta_tune.documents import find_document
    from elta_tune.space.check import load_space
    from elta_tune.studies.plan import make_plan

    config = _recipe(recipe, overrides)
    return make_plan(load_space(find_document(os.fspath(space), "search_spaces"), config), config)


def space_to_nni(space: File, recipe: File = "demo.yaml", *, overrides: Settings | None = None) -> dict[str, Any]:
    """A search space as NNI's `search_space`.

    Raises:
        ConfigError: as `check_space`, or NNI can't search this space.
    """
    from elta_tune.studies.nni.space import to_nni

    plan = _plan(space, recipe, overrides)
    return dict(to_nni(plan.space, plan.recipe))


def space_from_nni(file: File) -> str:
    """NNI's `search_space` as a search space of ours, in YAML.

    Args:
        file: JSON or YAML of NNI's, or the script that starts it, which is not run.

    Raises:
        ConfigError: there is no search space in it, or it can't be converted.
    """
    from elta_tune.studies.nni.space_import import from_nni

    return from_nni(Path(file))


def _recipe(recipe: File | TrialConfig, overrides: Settings | None) -> TrialConfig:
    from elta_tune.config import TrialConfig, load_recipe
    from elta_tune.documents import find_document

    if isinstance(recipe, TrialConfig):
        return recipe.replace(overrides or {}, source="`overrides`")
    return load_recipe(find_document(os.fspath(recipe), "trials"), overrides or {})


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)


@dataclass(frozen=True)
class StudySummary:
    """A study in a list of studies. A field is None where it is unknown: of a damaged one, or one that is prepared."""

    study: str
    state: Literal["running", "finished", "stopped", "preparing", "damaged"]
    path: Path
    ended: int | None = None
    budget: int | None = None
    pruned: int | None = None
    failed: int | None = None
    metric: str | None = None
    value: float | None = None
    """Of the best complete trial."""
    reason: str | None = None
    """What is damaged."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what is unknown is left out."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return {**known, **({} if self.ended is None else {"value": self.value}), "path": str(self.path)}


def list_studies(runs: File = RUNS) -> list[StudySummary]:
    """All studies of a folder, the last changed last, then those that are prepared.

    Raises:
        StudyError: the folder can't be read.
    """
    from elta_tune.records import find_studies, preparing_studies

    preparing = [StudySummary(each.name, "preparing", each.path.absolute()) for each in preparing_studies(Path(runs))]
    return [*map(_any_summary, find_studies(Path(runs))), *preparing]


def _any_summary(folder: StudyFolder) -> StudySummary:
    from elta_tune.errors import EltaTuneError

    try:
        return summarize(Study.open(folder.path))
    except EltaTuneError as error:
        return StudySummary(folder.name, "damaged", folder.path.absolute(), reason=error.message)


def summarize(study: Study) -> StudySummary:
    """How far a study is.

    Raises:
        StudyError: a file of it is damaged.
    """
    from elta_tune.studies.completion import is_exhausted, trials_wanted

    folder, plan, objective = study.folder, study.plan, study.plan.space.objective
    states, best = list[str](), None
    for result in study.results:
        states.append(result.state)
        if result.state == "complete" and objective.is_better(result.value, best):
            best = result.value
    ended = len(states) - states.count("failed")
    is_finished = ended >= plan.budget.trials or is_exhausted(folder, plan)
    return StudySummary(
        folder.name,
        "running" if folder.is_running() else "finished" if is_finished else "stopped",
        folder.path.absolute(),
        ended,
        trials_wanted(plan),
        states.count("pruned"),
        states.count("failed"),
        objective.metric,
        best,
    )


def stop(study: File | None = None, *, runs: File = RUNS, say: Callable[[str], None] | None = None) -> bool:
    """Ends a study that runs or is prepared in another process, as Ctrl-C does there.

    Args:
        study: its folder or its name under `runs`; left out, the last one.
        say: is called with a line while that takes long.

    Returns:
        Whether it ran.

    Raises:
        StudyError: there is no such study, it runs elsewhere, or it is another user's.
    """
    from elta_tune.records import open_study
    from elta_tune.studies.launch import stop_study

    folder = open_study(None if study is None else os.fspath(study), Path(runs), preparing=True)
    return stop_study(folder, say or (lambda line: None))


@contextmanager
def open_ui(study: File | None = None, *, port: int | None = None, runs: File = RUNS) -> Iterator[WebUI | str]:
    """Opens the web UI of a study whose back end has one; yields the address alone where the study runs now.

    Args:
        study: its folder or its name under `runs`; left out, the last one.
        port: of the web UI; None: a free one.

    Raises:
        EltaTuneError: there is no such study, it has no web UI, or that does not start.
    """
    from elta_tune.records import open_study
    from elta_tune.studies.backend import backend_of

    folder = open_study(None if study is None else os.fspath(study), Path(runs))
    backend = backend_of(folder)
    backend.check_installed()
    running = backend.find_running(folder)
    if running is not None and running.address:
        yield running.address
        return
    with backend.open_ui(folder, port) as opened:
        yield opened


def _checkpoint(model: File | Checkpoint, runs: File, head: Head | None) -> Checkpoint:
    from elta_tune.results.sources import load_model

    return load_model(os.fspath(model), Path(runs), head) if isinstance(model, str | os.PathLike) else model


def _cache(cache: File | None) -> Path:
    return Path(cache or os.environ.get("ELTA_TUNE_CACHE") or DEFAULT_CACHE).absolute()


def _image_cache(cache: File | None) -> ImageCache:
    from elta_tune.data.cache.image_cache import ImageCache  # which imports NumPy

    return ImageCache(_cache(cache))
