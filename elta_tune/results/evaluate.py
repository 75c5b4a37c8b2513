"""All metrics of a model on labelled images, or of predictions that exist."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from elta_tune.config import ColumnsConfig, DataConfig, TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.dataset import Split
from elta_tune.data.prepare import open_split
from elta_tune.data.readers import Ratings
from elta_tune.data.splits import LabelledName, read_splits
from elta_tune.errors import ConfigError, Settings
from elta_tune.method import metrics
from elta_tune.method.scores import RatingScale, from_method_scale, to_method_scale
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.results.predictions import PredictionFile, read_predictions
from elta_tune.training.devices import device_of
from elta_tune.training.model import place
from elta_tune.training.predict import Predictions, evaluate, predict
from elta_tune.trial import describe_split, out_of_memory_errors

TRAINING_FILE = ("data.train", "data.ratings", "data.root")
"""Fields that name the training file, and with it what predictions that exist are measured by."""
MEASURING = ("data.scale", "data.threshold", "data.higher_is_better")
"""Fields that say what the ratings mean."""
READING_IT = ("data.format", "data.columns", "data.split")
"""Fields that have an effect on these where one is named."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of docs/method.md §7, what they were taken of, by what, and on which data; `note` is of the model."""

    metrics: dict[str, float]
    predictions: Predictions
    yardstick: RatingScale
    data: dict[str, Any]
    note: str | None = None


def table_data(checkpoint: Checkpoint, csv: Path, images: Path | None, overrides: Settings) -> DataConfig:
    """A separate rating file as the whole test split of a data set; without `images`, they are next to it.

    Raises:
        ConfigError: an override is not a field of `data`.
    """
    own = checkpoint.config.data
    beside = csv.parent / "images"
    data = DataConfig(
        test=csv.absolute(),
        images=(images or (beside if beside.is_dir() else csv.parent)).absolute(),
        columns=ColumnsConfig(split="none"),
        resize=own.resize,
        crop=own.crop,
    )
    return data_with(checkpoint.config.model_copy(update={"data": data}), overrides)


def data_with(config: Any, overrides: Settings, only: Collection[str] = ("data",)) -> DataConfig:
    """The data of a recipe, with other values of some fields.

    Args:
        only: fields that have an effect, with all below them.

    Raises:
        ConfigError: an override is not a field of `data`, or has no effect.
    """
    for name in overrides:
        if not name.startswith("data."):
            raise ConfigError(f"`overrides`: {name}: only fields of data can be set here")
        if not any(f"{name}.".startswith(f"{field}.") or field.startswith(f"{name}.") for field in only):
            raise ConfigError(f"`overrides`: {name}: has no effect here; what has: {', '.join(only)}")
    data: DataConfig = config.replace(overrides, source="`overrides`").data
    return data


def predictions_data(overrides: Settings) -> DataConfig:
    """What is said of the data of predictions that exist.

    Raises:
        ConfigError: an override has no effect on how they are measured.
    """
    reading = READING_IT if overrides.keys() & {*TRAINING_FILE} else ()
    return data_with(TrialConfig(), overrides, (*MEASURING, *TRAINING_FILE, *reading))


def evaluate_model(
    checkpoint: Checkpoint,
    data: DataConfig,
    split: LabelledName,
    *,
    cache: ImageCache,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Evaluation:
    """Predicts a split of a data set and measures the predictions.

    Scores are mapped linearly from the model's scale onto the ratings'. The tails are those of the split that the
    model was trained on; where it has none, those of the training file that `data` names.

    Raises:
        DataError: there is no such split, or its images are missing.
        ModelError: the weights are not the model's.
        OutOfMemoryError: the model's batches for evaluation are too large for the device.
    """
    model, target = checkpoint.model(), device_of(device)
    rows, ratings = open_split(data, split, cache, progress)
    yardstick = _yardstick(checkpoint, ratings, data)
    is_mirrored = yardstick.higher_is_better != checkpoint.higher_is_better
    with out_of_memory_errors("another `device` may have more"):
        scale = yardstick.scale[::-1] if is_mirrored else yardstick.scale
        predictions = predict(place(model, target), rows, checkpoint.config, scale)
    if is_mirrored and predictions.distributions is not None:
        predictions = replace(predictions, distributions=predictions.distributions[:, ::-1].copy(), logits=None)
    measured = evaluate(predictions, _comparable(rows, predictions), yardstick)
    return Evaluation(measured, predictions, yardstick, asdict(describe_split(rows)), _note(checkpoint, predictions))


def _note(checkpoint: Checkpoint, predictions: Predictions) -> str | None:
    """What the user should know of a model and of what it predicted: a metric that is not defined does not say why."""
    count, total = int((~np.isfinite(predictions.scores)).sum()), len(predictions.scores)
    failed = f"its output is not finite for {count:,} of {total:,} images" if count else None
    return "; ".join(filter(None, (checkpoint.note, failed))) or None


def _yardstick(checkpoint: Checkpoint, ratings: Ratings, data: DataConfig) -> RatingScale:
    scale, cuts, cuts_scale = ratings.scale or checkpoint.scale, checkpoint.tail_cuts, checkpoint.scale
    if cuts is None and (training := training_file(data)) is not None:
        cuts, cuts_scale = training.tail_cuts, training.scale
    higher_is_better = checkpoint.higher_is_better if data.higher_is_better is None else data.higher_is_better
    ends = scale if higher_is_better == checkpoint.higher_is_better or checkpoint.tail_cuts is None else scale[::-1]
    if cuts is not None and ends != cuts_scale:
        low, high = sorted(from_method_scale(to_method_scale(np.array(cuts), cuts_scale), ends).tolist())
        cuts = (low, high)
    threshold = checkpoint.threshold if ratings.threshold is None else ratings.threshold
    return RatingScale(scale, threshold, cuts, ratings.is_spread, higher_is_better)


def training_file(data: DataConfig) -> RatingScale | None:
    """The scale, threshold and tails of the training file of a data set, None where there is none.

    Raises:
        DataError: it is named and can't be read.
    """
    file, named = data.path("train"), data.train or data.ratings
    if file is None or not (named or file.exists()):
        return None
    ratings = read_splits(data, ["train"]).labelled["train"]
    cuts = metrics.tail_cuts(ratings.scores)
    return RatingScale(ratings.scale, ratings.threshold, cuts, ratings.is_spread, ratings.higher_is_better)


def _comparable(rows: Split, predictions: Predictions) -> Split:
    """Without distributions if they have other bins than the model's."""
    true, predicted = rows.distributions, predictions.distributions
    if true is None or predicted is None or true.shape == predicted.shape:
        return rows
    return replace(rows, distributions=None)


def evaluate_predictions(file: Path, data: DataConfig) -> Evaluation:
    """Measures predictions that exist, without a model.

    Scale, threshold and tails are those of the training file that `data` names; else, for the predictions of a trial,
    the trial's, unless `data` gives another scale; else the scale is 1…K for K bins (1…10 without), and there are no
    tails.

    Raises:
        DataError: the file can't be read, has no `gt`, or has one that is outside the scale.
    """
    read = read_predictions(file)
    truth, yardstick = read.require_truth(), yardstick_of_file(read, data)
    measured = metrics.evaluate(
        read.predictions.scores,
        truth,
        threshold=yardstick.threshold,
        scale=yardstick.scale,
        tail_cuts=yardstick.tail_cuts,
        higher_is_better=yardstick.higher_is_better,
    )
    facts = {"file": str(file), "rows": len(truth), "left_out": read.left_out}
    return Evaluation(measured, read.predictions, yardstick, facts)


def yardstick_of_file(file: PredictionFile, data: DataConfig) -> RatingScale:
    """What the predictions in a file with true scores are measured by, as `evaluate_predictions` says.

    Raises:
        DataError: a true score is outside the scale.
    """
    scale, threshold, cuts, higher_is_better = (1.0, float(file.bins or 10)), None, None, True
    known = training_file(data) or _of_the_trial(file.path)
    if known is not None and data.scale in (None, known.scale):  # on another scale they are not the trial's
        scale, threshold, cuts = known.scale, known.threshold, known.tail_cuts
        higher_is_better = known.higher_is_better
    scale = data.scale or scale
    if data.higher_is_better is not None:
        higher_is_better = data.higher_is_better
    file.refuse_outside(scale)
    threshold = threshold if data.threshold is None else data.threshold
    if threshold is None:
        threshold = 5.0 if scale == (1.0, 10.0) else sum(scale) / 2  # 5 is AVA's
    return RatingScale(scale, threshold, cuts, higher_is_better=higher_is_better)


def _of_the_trial(file: Path) -> RatingScale | None:
    """What the `result.json` next to a trial's predictions says; one of another tool is ignored."""
    try:
        model = json.loads(file.with_name("result.json").read_text(encoding="utf-8"))["model"]
        (low, high), threshold, cuts = model["scale"], model["threshold"], model["tail_cuts"]
        scale, tails = (float(low), float(high)), (float(cuts[0]), float(cuts[1]))
        return RatingScale(scale, float(threshold), tails, higher_is_better=bool(model.get("higher_is_better", True)))
    except (OSError, ValueError, TypeError, LookupError):
        return None
