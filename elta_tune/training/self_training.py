"""Self-training: round 0 trains on the labels, each further one on labels and pseudo-labels (METHOD.md §4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.check import unfit
from elta_tune.data.dataset import Dataset
from elta_tune.errors import ConfigError
from elta_tune.method.scores import mean_score
from elta_tune.method.sharpening import select, sharpen
from elta_tune.training.loop import (
    Predictions,
    Samples,
    build_optimizer,
    evaluate,
    forget_peak_memory,
    precision_of,
    predict,
    to_method_scale,
    train_epoch,
)
from elta_tune.training.model import SCALE, AestheticModel, build_model, check_images, trained_state
from elta_tune.training.seeding import stage_seed

Plain = TypeVar("Plain", "Selection", Predictions)
ARRAYS = ("truth", "scores", "distributions")


@dataclass(frozen=True)
class Selection:
    """The M of `pool_size` images of the pool that round `round` trains on.

    `rows` (M,) of the pool, `scores` (M,) on the data set's own scale, `raw` and `sharpened` (M, K) distributions.
    """

    round: int
    pool_size: int
    ids: NDArray[np.object_]
    rows: Tensor
    scores: NDArray[np.float64]
    raw: Tensor
    sharpened: Tensor


@dataclass(frozen=True)
class Best:
    """The best epoch so far; `value` is the metric that says so."""

    step: int
    round: int
    epoch: int
    value: float
    metrics: dict[str, float]
    predictions: Predictions


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    `step` counts on from 1 across the rounds, `epoch` from 1 within its round. `selection` is what the pool gives to
    the next round, on the last epoch of a round that has one. `checkpoint` is all that is needed to go on after it,
    best weights apart; `weights` are the model's. Both hold tensors and plain values alone and are good until the
    next epoch is asked for.
    """

    step: int
    round: int
    epoch: int
    metrics: dict[str, float]
    training: dict[str, float]
    best: Best
    selection: Selection | None
    checkpoint: dict[str, Any] = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)

    @property
    def is_best(self) -> bool:
        """Whether it beats all epochs before."""
        return self.best.step == self.step


def to_plain(record: Selection | Predictions) -> dict[str, Any]:
    """A record as tensors and plain values: what `torch.load(weights_only=True)` takes."""
    values = {item.name: getattr(record, item.name) for item in fields(record)}
    values["ids"] = list(values["ids"])
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def from_plain(kind: type[Plain], plain: dict[str, Any]) -> Plain:
    """The way back of `to_plain`."""

    def restored(name: str, value: Any) -> Any:
        if name == "ids":
            return np.array(value, dtype=object)
        return value.numpy() if name in ARRAYS and value is not None else value

    return kind(**{name: restored(name, value) for name, value in plain.items()})


@dataclass
class Learner:
    """What changes while a trial trains; `epoch` of the running `round` are done."""

    model: AestheticModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    round: int = 0
    epoch: int = 0
    selection: Selection | None = None
    best: Best | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


def check_fits(config: TrialConfig, dataset: Dataset) -> None:
    """Refuses a configuration that can't be trained on a data set, after building its model once.

    Raises:
        ConfigError: the metric is not measured on these data.
        DataError: the training split is smaller than a batch, or self-training has no pool.
        ModelError: the model can't be built, or can't take the images.
    """
    _check_data(config, dataset)
    learner = _new_learner(config, dataset, torch.device("cpu"), round=0)
    check_images(learner.model, config.model, config.data.crop)


def _check_data(config: TrialConfig, dataset: Dataset) -> None:
    if refusal := unfit(config, dataset.train.file, len(dataset.train.ids), has_pool=dataset.pool is not None):
        raise refusal
    val, metric = dataset.val, config.evaluation.metric
    distributions = val.distributions if config.model.head == "emd" else None
    ideal = Predictions(val.ids, val.true_scores, val.true_scores, distributions, None)
    if metric not in (known := evaluate(ideal, val, dataset)):
        raise ConfigError(f"evaluation.metric: {metric} is not measured on {val.file}; there are {', '.join(known)}")


def self_training_rounds(
    config: TrialConfig, dataset: Dataset, device: torch.device, *, resume: dict[str, Any] | None = None
) -> Iterator[Epoch]:
    """Trains all rounds, an epoch at a time.

    A round starts from the best checkpoint so far, or afresh. Where nothing of the pool is selected, the rounds end:
    the same checkpoint would select nothing again.

    Args:
        resume: an earlier `Epoch.checkpoint` of the same configuration, with the best weights as `best_weights`;
            training goes on after it as if it had never stopped (on the CPU to the bit).

    Raises:
        ConfigError, DataError, ModelError: as `check_fits`, which also tries what the first epoch would trip over.
        DivergedError: a loss is not finite.
    """
    _check_data(config, dataset)
    forget_peak_memory(device)
    learner = _new_learner(config, dataset, device, round=0)
    if resume is not None:
        _restore(learner, resume)
    samples = _samples(config, dataset, learner.selection)
    while learner.epoch < (epochs := config.self_training.epochs if learner.round else config.training.epochs):
        if learner.epoch == 0 and learner.round > 0:
            learner = _next_round(learner, config, dataset, device)
            samples = _samples(config, dataset, learner.selection)
        learner.step, learner.epoch = learner.step + 1, learner.epoch + 1
        training = train_epoch(
            learner.model,
            learner.optimizer,
            learner.scaler,
            samples,
            config,
            round=learner.round,
            epoch=learner.epoch,
            epochs=epochs,
        )
        training["pseudo_labels"] = len(samples.scores) - len(dataset.train.ids)
        yield _finish_epoch(learner, config, dataset, training)


def _finish_epoch(learner: Learner, config: TrialConfig, dataset: Dataset, training: dict[str, float]) -> Epoch:
    """Evaluates, keeps the best, and where the round ends selects what the next one trains on."""
    round, epoch = learner.round, learner.epoch
    predictions = predict(learner.model, dataset.val, config, dataset.scale)
    metrics = evaluate(predictions, dataset.val, dataset)
    weights = trained_state(learner.model)
    value = metrics[config.evaluation.metric]
    if learner.best is None or _is_better(value, learner.best.value, config.evaluation.towards):
        learner.best = Best(learner.step, round, epoch, value, metrics, predictions)
        learner.best_weights = weights
    selection = None
    if epoch == (config.self_training.epochs if round else config.training.epochs):
        selection = _select(learner, config, dataset)
        if selection is not None and len(selection.rows):
            learner.round, learner.epoch, learner.selection = round + 1, 0, selection
    checkpoint = _checkpoint(learner, weights)
    return Epoch(learner.step, round, epoch, metrics, training, learner.best, selection, checkpoint, weights)


def _is_better(value: float, record: float, direction: str) -> bool:
    """Whether a metric beats the best so far; what is not a number never does."""
    if math.isnan(value) or math.isnan(record):
        return math.isnan(record) and not math.isnan(value)
    return value > record if direction == "maximize" else value < record


def _select(learner: Learner, config: TrialConfig, dataset: Dataset) -> Selection | None:
    """What the best model so far selects from the pool, or None if no round follows."""
    if learner.round == config.self_training.rounds:
        return None
    assert dataset.pool is not None
    learner.model.load_state_dict(learner.best_weights)  # its own are saved, and the next round has another model
    predictions = predict(learner.model, dataset.pool, config, dataset.scale)
    assert predictions.logits is not None
    assert predictions.distributions is not None
    scores = torch.from_numpy(to_method_scale(predictions.scores, dataset.scale)).float()
    sharpened = sharpen(predictions.logits, scores, config.sharpening.temperature)
    rows = select(sharpened, config.sharpening.threshold).nonzero().squeeze(1)
    return Selection(
        round=learner.round + 1,
        pool_size=len(dataset.pool.ids),
        rows=rows,
        ids=dataset.pool.ids[rows.numpy()],
        scores=predictions.scores[rows.numpy()],
        raw=torch.from_numpy(predictions.distributions)[rows],
        sharpened=sharpened[rows],
    )


def _samples(config: TrialConfig, dataset: Dataset, selection: Selection | None) -> Samples:
    """The labels, and the pseudo-labels of a selection."""
    train = dataset.train
    images = train.images[config.data.resize]
    scores = torch.from_numpy(to_method_scale(train.true_scores, dataset.scale)).float()
    if config.model.head == "mse":
        return Samples(images, scores[:, None] / SCALE[1], scores)
    targets = torch.from_numpy(train.distributions)
    if selection is None:
        return Samples(images, targets, scores)
    assert dataset.pool is not None
    pseudo = selection.raw if config.sharpening.target == "raw" else selection.sharpened
    pool = dataset.pool.images[config.data.resize].subset(selection.rows.numpy())
    targets = torch.cat([targets, pseudo])
    scores = torch.cat([scores, mean_score(pseudo, method_bins(dataset))])
    return Samples(images.joined(pool), targets, scores)


def method_bins(dataset: Dataset) -> Tensor:
    """The rating (K,) of each bin, on the method's 1…10."""
    assert dataset.bins is not None
    return torch.from_numpy(to_method_scale(dataset.bins, dataset.scale)).float()


def _new_learner(config: TrialConfig, dataset: Dataset, device: torch.device, *, round: int) -> Learner:
    model = build_model(
        config.model,
        bins=None if dataset.bins is None else method_bins(dataset),
        size=config.data.crop,
        seed=stage_seed(config.seed, "model", round),
    )
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(config, device) == torch.float16)
    return Learner(model, build_optimizer(model, config.optim), scaler)


def _next_round(learner: Learner, config: TrialConfig, dataset: Dataset, device: torch.device) -> Learner:
    fresh = _new_learner(config, dataset, device, round=learner.round)
    if config.self_training.init == "continue":
        fresh.model.load_state_dict(learner.best_weights)
    return replace(learner, model=fresh.model, optimizer=fresh.optimizer, scaler=fresh.scaler)


def _checkpoint(learner: Learner, weights: dict[str, Tensor]) -> dict[str, Any]:
    """All that is needed to go on, best weights apart, as tensors and plain values."""
    assert learner.best is not None
    best, selection = learner.best, learner.selection
    return {
        "step": learner.step,
        "round": learner.round,
        "epoch": learner.epoch,
        "model": weights,
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict(),
        "best": {
            "step": best.step,
            "round": best.round,
            "epoch": best.epoch,
            "value": best.value,
            "metrics": best.metrics,
            "predictions": to_plain(best.predictions),
        },
        "selection": None if selection is None else to_plain(selection),
    }


def _restore(learner: Learner, resume: dict[str, Any]) -> None:
    learner.model.load_state_dict(resume["model"])
    learner.optimizer.load_state_dict(resume["optimizer"])
    learner.scaler.load_state_dict(resume["scaler"])
    learner.step, learner.round, learner.epoch = resume["step"], resume["round"], resume["epoch"]
    best = dict(resume["best"])
    learner.best = Best(**best | {"predictions": from_plain(Predictions, best["predictions"])})
    learner.best_weights = resume["best_weights"]
    selection = resume["selection"]
    learner.selection = None if selection is None else from_plain(Selection, selection)
