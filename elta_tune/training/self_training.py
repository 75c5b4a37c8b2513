"""Self-training: round 0 trains on the labels, each further one on labels and pseudo-labels (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from elta_tune.config import SharpeningConfig, TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import Progress
from elta_tune.data.check import reasons_to_refuse, unmeasurable
from elta_tune.data.dataset import Dataset
from elta_tune.method.scores import SCALE, mean_score, method_bins, to_method_scale
from elta_tune.method.sharpening import select, sharpen
from elta_tune.records import Best
from elta_tune.training.backbone import check_images
from elta_tune.training.epoch import Samples, reset_peak_memory, train_epoch
from elta_tune.training.features import frozen_dataset, print_when_done
from elta_tune.training.predict import Predictions, evaluate, predict
from elta_tune.training.state import (
    Selection,
    TrainingState,
    checkpoint_of,
    new_model,
    new_state,
    next_round,
    restored,
)


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


def check_fits(config: TrialConfig, dataset: Dataset) -> None:
    """Refuses a configuration that can't be trained on a data set, after building its model once.

    Raises:
        ConfigError: the metric is not measured on these data.
        DataError: the training split is smaller than a batch, self-training has no pool, or the metric is not defined
            on the validation split.
        ModelError: the model can't be built, or can't take the images.
    """
    _check_data(config, dataset)
    if refusal := unmeasurable(config, dataset.val, dataset.rating_scale):
        raise refusal
    check_images(new_model(config, dataset, round=0).backbone, config.model, config.data.crop)


def _check_data(config: TrialConfig, dataset: Dataset) -> None:
    has_pool, has_bins = dataset.pool is not None, dataset.bins is not None
    reasons = reasons_to_refuse(config, dataset.train, scale=dataset.scale, has_pool=has_pool, has_bins=has_bins)
    for reason in reasons:
        raise reason


def compute_frozen(config: TrialConfig, dataset: Dataset, cache: ImageCache, progress: Progress) -> None:
    """Computes what a trial with a frozen backbone looks for in the cache, on the CPU.

    Raises:
        DataError: the cache can't be written.
    """
    _frozen(config, dataset, torch.device("cpu"), cache, progress)


def _frozen(
    config: TrialConfig, dataset: Dataset, device: torch.device, cache: ImageCache | None, progress: Progress
) -> Dataset:
    """Replaces images by features in the splits that a trial reads: never test, and the pool only in rounds."""
    read = replace(dataset, test=None, pool=dataset.pool if config.self_training.rounds else None)
    build = partial(new_model, config, dataset, round=0)
    return frozen_dataset(read, config, build, device=device, cache=cache, progress=progress)


def self_training_rounds(
    config: TrialConfig,
    dataset: Dataset,
    device: torch.device,
    *,
    resume: dict[str, Any] | None = None,
    cache: ImageCache | None = None,
) -> Iterator[Epoch]:
    """Trains all rounds, an epoch at a time.

    A round starts from the best checkpoint so far, or afresh. Where nothing of the pool is selected, the rounds end:
    the same checkpoint would select nothing again. A last round, if there is one, trains the head alone.

    Args:
        resume: an earlier `Epoch.checkpoint` of the same configuration, with the best weights as `best_weights`;
            training resumes after it as if it had never stopped (bit-exactly on the CPU).
        cache: where a frozen backbone's features are kept, None to keep none.

    Raises:
        ConfigError, DataError, ModelError: as `check_fits`, which also checks what would fail in the first epoch.
        DivergedError: a loss is not finite.
    """
    _check_data(config, dataset)
    reset_peak_memory(device)
    if config.model.freeze:
        dataset = _frozen(config, dataset, device, cache, print_when_done)
    state, data = new_state(config, dataset, device, round=0), dataset
    if resume is not None:
        state, data = restored(state, config, dataset, resume)
    samples = _samples(config, data, state.selection)
    while state.epoch < (epochs := config.epochs_of(state.round)):
        if state.epoch == 0 and state.round > 0:
            state, data = next_round(state, config, dataset, device)
            samples = _samples(config, data, state.selection)
        state.step, state.epoch = state.step + 1, state.epoch + 1
        training = train_epoch(
            state.model,
            state.optimizer,
            state.scaler,
            samples,
            config,
            round=state.round,
            epoch=state.epoch,
            epochs=epochs,
        )
        training["pseudo_labels"] = len(samples.scores) - len(dataset.train.ids)
        yield _finish_epoch(state, config, data, training)


def _finish_epoch(state: TrainingState, config: TrialConfig, dataset: Dataset, training: dict[str, float]) -> Epoch:
    """Evaluates, keeps the best, and where the round ends selects what the next one trains on."""
    round, epoch = state.round, state.epoch
    predictions = predict(state.model, dataset.val, config, dataset.scale)
    metrics = evaluate(predictions, dataset.val, dataset.rating_scale)
    weights = state.weights
    value = metrics[config.evaluation.metric]
    if state.best is None or config.evaluation.is_better(value, state.best.value):
        state.best = Best(state.step, round, epoch, value, metrics)
        state.best_predictions = predictions
        state.best_weights = weights
    selection = None
    if epoch == config.epochs_of(round):
        selection = _select(state, config, dataset)
        if selection is not None and len(selection.rows):
            state.round, state.epoch, state.selection = round + 1, 0, selection
        elif round <= config.self_training.rounds and config.training.retrain_head_epochs:
            state.round, state.epoch = config.self_training.rounds + 1, 0
    checkpoint = checkpoint_of(state, weights)
    return Epoch(state.step, round, epoch, metrics, training, state.best, selection, checkpoint, weights)


def _select(state: TrainingState, config: TrialConfig, dataset: Dataset) -> Selection | None:
    """What the best model so far selects from the pool, or None if no round follows."""
    if state.round >= config.self_training.rounds:
        return None
    assert dataset.pool is not None
    state.model.load_state_dict(state.best_weights)  # its own are saved, and the next round has another model
    predictions = predict(state.model, dataset.pool, config, dataset.scale)
    return select_from(predictions, config.sharpening, dataset.scale, round=state.round + 1)


def select_from(
    pool: Predictions, sharpening: SharpeningConfig, scale: tuple[float, float], *, round: int
) -> Selection:
    """The images of a pool whose sharpened confidence is above the threshold.

    Args:
        pool: with distributions and logits.
        scale: of its scores.
        round: that trains on them.
    """
    assert pool.logits is not None
    assert pool.distributions is not None
    scores = torch.from_numpy(to_method_scale(pool.scores, scale)).float()
    sharpened = sharpen(pool.logits, scores, sharpening.temperature)
    rows = select(sharpened, sharpening.threshold).nonzero().squeeze(1)
    return Selection(
        round=round,
        pool_size=len(pool.ids),
        rows=rows,
        ids=pool.ids[rows.numpy()],
        scores=pool.scores[rows.numpy()],
        raw=torch.from_numpy(pool.distributions)[rows],
        sharpened=sharpened[rows],
    )


def _samples(config: TrialConfig, dataset: Dataset, selection: Selection | None) -> Samples:
    """The labels, and the pseudo-labels of a selection."""
    train = dataset.train
    images = train.images[config.data.resize]
    scores = torch.from_numpy(to_method_scale(train.scores, dataset.scale)).float()
    if config.model.head == "mse":
        return Samples(images, scores[:, None] / SCALE[1], scores)
    targets = torch.from_numpy(train.distributions)
    if selection is None:
        return Samples(images, targets, scores)
    assert dataset.pool is not None
    assert dataset.bins is not None
    pseudo = selection.raw if config.sharpening.target == "raw" else selection.sharpened
    pool = dataset.pool.images[config.data.resize].subset(selection.rows.numpy())
    targets = torch.cat([targets, pseudo])
    scores = torch.cat([scores, mean_score(pseudo, method_bins(dataset.bins, dataset.scale))])
    return Samples(images.joined(pool), targets, scores)
