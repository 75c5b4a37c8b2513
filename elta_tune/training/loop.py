"""The loop: one epoch of training, one evaluation of a split."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elta_tune.config import OptimConfig, TrialConfig
from elta_tune.data.batches import ImageSource, epoch_order, in_order, prefetch
from elta_tune.data.dataset import ImageSet, Split
from elta_tune.errors import DivergedError
from elta_tune.method import metrics
from elta_tune.training.model import SCALE, AestheticModel
from elta_tune.training.seeding import stage_generator, stage_seed
from elta_tune.training.step import step_losses

STEP_TERMS = ("loss", "loss_task", "loss_similarity", "gradient_norm", "lr")
"""What is measured in each step; an epoch records the means."""


Scores = TypeVar("Scores", NDArray[np.float64], Tensor)


@dataclass(frozen=True)
class Samples:
    """What a round trains on: N images with targets (N, K) or (N, 1) and scores (N,) on 1…10."""

    images: ImageSource
    targets: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Predictions:
    """What a model says of a split, and what is true if one knows, on the data set's own scale.

    `ids`, `truth` and `scores` (N,); `distributions` and `logits` (N, K) only with an `emd` head.
    """

    ids: NDArray[np.object_]
    truth: NDArray[np.float64] | None
    scores: NDArray[np.float64]
    distributions: NDArray[np.float32] | None
    logits: Tensor | None


def learning_rate_factor(config: OptimConfig, done: float, total: float) -> float:
    """Share of the full learning rate after `done` of `total` epochs of a round."""
    if done < config.warmup_epochs:
        return done / config.warmup_epochs
    if config.schedule == "constant":
        return 1.0
    rest = max(total - config.warmup_epochs, 1e-12)
    return 0.5 * (1 + math.cos(math.pi * min((done - config.warmup_epochs) / rest, 1.0)))


def build_optimizer(model: AestheticModel, config: OptimConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    """The recipe's optimizer; `base_lr` of a group is its full learning rate.

    Args:
        fused: all of Adam in one pass over a tensor, which on a CPU takes a sixth of the time; not with a scaler.
    """
    groups = [
        {"params": list(model.backbone.parameters()), "base_lr": config.lr * config.backbone_lr_factor},
        {"params": list(model.head.parameters()), "base_lr": config.lr},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused or None)


def precision_of(config: TrialConfig, device: torch.device) -> torch.dtype:
    """Arithmetic of the forward pass in training; evaluation is always float32."""
    if config.training.precision != "auto":
        precision: torch.dtype = getattr(torch, config.training.precision)
        return precision
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def train_epoch(
    model: AestheticModel,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    samples: Samples,
    config: TrialConfig,
    *,
    round: int,
    epoch: int,
    epochs: int,
) -> dict[str, float]:
    """Trains one epoch, in place; `epoch` counts from 1 within the round.

    Returns:
        Means over the steps: loss terms, gradient norm, and lr, seconds, images_per_second, peak_memory_mb.

    Raises:
        DivergedError: a loss is not finite.
    """
    device = model.device
    stage = (round, epoch)
    torch.manual_seed(stage_seed(config.seed, "dropout", *stage))  # dropout and drop path take no generator
    crops = stage_generator(config.seed, "crops", *stage)
    pairs = stage_generator(config.seed, "pairs", *stage)
    order = epoch_order(len(samples.images), config.training.batch_size, stage_generator(config.seed, "order", *stage))
    steps: list[list[float]] = []
    precision = precision_of(config, device)
    started = time.perf_counter()
    model.train()
    cropped = prefetch(samples.images, order, device, lambda batch: model.augmented(batch, config.data.crop, crops))
    for number, (rows, batch) in enumerate(cropped):
        factor = learning_rate_factor(config.optim, epoch - 1 + (number + 1) / len(order), epochs)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        losses = step_losses(
            model,
            model.normalized(batch),
            samples.targets[rows].to(device),
            samples.scores[rows].to(device),
            config,
            precision=precision,
            generator=pairs,
        )
        norm = _update(model, optimizer, scaler, losses.total)
        terms = torch.stack([*losses, norm]).tolist()  # the one wait for the device in a step
        if not math.isfinite(terms[0]):
            raise DivergedError(f"the loss became {terms[0]} in round {round}, epoch {epoch}, step {number + 1}")
        steps.append([*terms, config.optim.lr * factor])
    seconds = time.perf_counter() - started
    means = [_finite_mean(column) for column in np.array(steps).T]
    return dict(zip(STEP_TERMS, means, strict=True)) | {
        "seconds": seconds,
        "images_per_second": len(order) * config.training.batch_size / seconds,
        "peak_memory_mb": peak_memory_mb(device),
    }


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor) -> Tensor:
    """One optimizer step; returns the gradient's norm, infinite where float16 overflowed and the step was skipped."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    scaler.step(optimizer)
    scaler.update()
    return norm


def _finite_mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def forget_peak_memory(device: torch.device) -> None:
    """Begins to count `peak_memory_mb` anew, where a process trains more than once."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far: by the trial on CUDA, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """float32 in full: on CUDA torch rounds what enters convolutions to TF32's 10 bits, by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@exact_convolutions()
@torch.inference_mode()
def predict_batch(model: AestheticModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """What a model that evaluates says of images (B, S, S, 3): outputs (B, K) or (B, 1), and scores (B,) on 1…10.

    Both are float32, on the CPU.
    """
    _, outputs = model(model.normalized(batch))
    return outputs.float().cpu(), model.head.scores(outputs.float()).cpu()


def predict(model: AestheticModel, split: ImageSet, config: TrialConfig, scale: tuple[float, float]) -> Predictions:
    """Predicts every image of a split, in order, in float32, with the evaluation's own batch size."""
    device = model.device
    images = split.images[config.data.crop]
    model.eval()
    logits: list[Tensor] = []
    scores: list[Tensor] = []
    for _, batch in prefetch(images, in_order(len(images), config.evaluation.batch_size), device):
        outputs, of_batch = predict_batch(model, batch)
        logits.append(outputs)
        scores.append(of_batch)
    own = from_method_scale(torch.cat(scores).double().numpy(), scale)
    truth = split.scores if isinstance(split, Split) else None
    if config.model.head == "mse":
        return Predictions(split.ids, truth, own, None, None)
    joined = torch.cat(logits)
    return Predictions(split.ids, truth, own, joined.softmax(dim=1).numpy(), joined)


class Yardstick(Protocol):
    """What metrics are measured by: a `Dataset`, or what a checkpoint kept of one."""

    @property
    def scale(self) -> tuple[float, float]:
        """Lowest and highest possible score."""
        ...

    @property
    def threshold(self) -> float:
        """A score above it counts as beautiful."""
        ...

    @property
    def tail_cuts(self) -> tuple[float, float] | None:
        """Where the tails of the training split begin."""
        ...

    @property
    def is_spread(self) -> bool:
        """Whether distributions were made from scores."""
        ...


def evaluate(predictions: Predictions, split: Split, yardstick: Yardstick) -> dict[str, float]:
    """All metrics of docs/method.md §7; those of distributions only where people gave them."""
    both = predictions.distributions is not None and split.distributions is not None and not yardstick.is_spread
    return metrics.evaluate(
        predictions.scores,
        split.scores,
        threshold=yardstick.threshold,
        scale=yardstick.scale,
        tail_cuts=yardstick.tail_cuts,
        predicted_distributions=predictions.distributions if both else None,
        true_distributions=split.distributions if both else None,
    )


def to_method_scale(scores: Scores, scale: tuple[float, float]) -> Scores:
    """Scores of a data set, mapped linearly onto 1…10 (docs/method.md §1)."""
    low, high = scale
    return SCALE[0] + (SCALE[1] - SCALE[0]) * (scores - low) / (high - low)


def from_method_scale(scores: Scores, scale: tuple[float, float]) -> Scores:
    """The way back of `to_method_scale`."""
    low, high = scale
    return low + (high - low) * (scores - SCALE[0]) / (SCALE[1] - SCALE[0])
