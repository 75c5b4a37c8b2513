"""All metrics of a model on labelled images, or of predictions that exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from elta_tune.config import DataConfig
from elta_tune.data.cache import Progress, no_progress
from elta_tune.data.dataset import Split, open_split
from elta_tune.data.readers import Ratings
from elta_tune.data.splits import SplitName, read_splits
from elta_tune.errors import ConfigError, DataError
from elta_tune.method import metrics
from elta_tune.results.checkpoint import Checkpoint
from elta_tune.results.predictions import read_predictions
from elta_tune.training.devices import device_of
from elta_tune.training.loop import Predictions, evaluate, predict
from elta_tune.trial import describe_split


@dataclass(frozen=True)
class Yardstick:
    """What metrics are measured by; `tail_cuts` are None where the training split is not known."""

    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float] | None
    is_spread: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The metrics of METHOD.md §7, what they were taken of, and on which data."""

    metrics: dict[str, float]
    predictions: Predictions
    data: dict[str, Any]


def table_data(checkpoint: Checkpoint, csv: Path, images: Path | None, overrides: Mapping[str, Any]) -> DataConfig:
    """A rating file of its own as the test split of a data set; without `images`, they are beside it.

    Raises:
        ConfigError: an override is no field of `data`.
    """
    own = checkpoint.config.data
    beside = csv.parent / "images"
    data = DataConfig(
        test=csv.absolute(),
        images=(images or (beside if beside.is_dir() else csv.parent)).absolute(),
        resize=own.resize,
        crop=own.crop,
    )
    return data_with(checkpoint.config.model_copy(update={"data": data}), overrides)


def data_with(config: Any, overrides: Mapping[str, Any]) -> DataConfig:
    """The data of a recipe, with other values of some fields.

    Raises:
        ConfigError: an override is no field of `data`.
    """
    for name in overrides:
        if not name.startswith("data."):
            raise ConfigError(f"--set {name}: only fields of data can be set here")
    data: DataConfig = config.replace(overrides, source="--set").data
    return data


def evaluate_model(
    checkpoint: Checkpoint,
    data: DataConfig,
    split: SplitName,
    *,
    cache: Path,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> Evaluation:
    """Predicts a split of a data set and measures the predictions.

    Scores are mapped linearly from the model's scale onto the ratings'. The tails are those of the split that the
    model was trained on.

    Raises:
        DataError: there is no such split, it has no ratings, or its images are missing.
        ModelError: the weights are not the model's.
    """
    # As the training holds it: in another memory format the sums run in another order.
    model = checkpoint.model().to(device=device_of(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows, ratings = open_split(data, split, cache, progress)
    if rows.scores is None:
        raise DataError(f"{rows.file}: the {split} split has no ratings to measure by")
    yardstick = _yardstick(checkpoint, ratings)
    predictions = predict(model, rows, checkpoint.config, yardstick.scale)
    measured = evaluate(predictions, _comparable(rows, predictions), yardstick)
    return Evaluation(measured, predictions, describe_split(rows))


def _yardstick(checkpoint: Checkpoint, ratings: Ratings) -> Yardstick:
    scale = ratings.scale or checkpoint.scale
    cuts = checkpoint.tail_cuts
    if cuts is not None and scale != checkpoint.scale:
        (low, high), (own_low, own_high) = scale, checkpoint.scale
        low_cut, high_cut = (low + (high - low) * (cut - own_low) / (own_high - own_low) for cut in cuts)
        cuts = (low_cut, high_cut)
    threshold = checkpoint.threshold if ratings.threshold is None else ratings.threshold
    return Yardstick(scale, threshold, cuts, ratings.is_spread)


def _comparable(rows: Split, predictions: Predictions) -> Split:
    """Without distributions if they have other bins than the model's."""
    true, predicted = rows.distributions, predictions.distributions
    if true is None or predicted is None or true.shape == predicted.shape:
        return rows
    return replace(rows, distributions=None)


def evaluate_predictions(file: Path, data: DataConfig) -> Evaluation:
    """Measures predictions that exist, without a model.

    Scale, threshold and tails are those of the training file that `data` names; else, for the predictions of a trial,
    the trial's; else the scale is 1…K for K bins (1…10 without), and there are no tails.

    Raises:
        DataError: the file can't be read, or has no `gt`.
    """
    predictions = read_predictions(file)
    if predictions.truth is None:
        raise DataError(f"{file}: there is no column gt with the true scores")
    yardstick = yardstick_of_file(file, data, predictions)
    measured = metrics.evaluate(
        predictions.scores,
        predictions.truth,
        threshold=yardstick.threshold,
        scale=yardstick.scale,
        tail_cuts=yardstick.tail_cuts,
    )
    return Evaluation(measured, predictions, {"file": str(file), "rows": len(predictions.ids)})


def yardstick_of_file(file: Path, data: DataConfig, predictions: Predictions) -> Yardstick:
    """What the predictions in a file are measured by, as `evaluate_predictions` says."""
    bins = 10 if predictions.distributions is None else predictions.distributions.shape[1]
    scale, threshold, cuts = (1.0, float(bins)), None, None
    if data.path("train") is not None:
        ratings = read_splits(data, ["train"])["train"]
        scale, threshold = ratings.scale or scale, ratings.threshold
        cuts = None if ratings.scores is None else metrics.tail_cuts(ratings.scores)
    elif (result := file.with_name("result.json")).is_file():
        model = json.loads(result.read_text(encoding="utf-8")).get("model", {})
        scale, threshold = tuple(model.get("scale", scale)), model.get("threshold")
        cuts = None if model.get("tail_cuts") is None else tuple(model["tail_cuts"])
    scale = data.scale or scale
    threshold = threshold if data.threshold is None else data.threshold
    if threshold is None:
        threshold = 5.0 if scale == (1.0, 10.0) else sum(scale) / 2  # 5 is AVA's
    return Yardstick(scale, threshold, cuts)
