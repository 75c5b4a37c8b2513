"""One epoch of training."""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.batches import ImageSource, epoch_order, prefetch
from elta_tune.errors import DivergedError
from elta_tune.training.model import AestheticModel
from elta_tune.training.optimizer import learning_rate_factor, precision_of, update_weights
from elta_tune.training.seeding import stage_generator, stage_seed
from elta_tune.training.step import step_losses


@dataclass(frozen=True)
class Samples:
    """What a round trains on: N images with targets (N, K) or (N, 1) and scores (N,) on 1…10."""

    images: ImageSource
    targets: Tensor
    scores: Tensor


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
        Means over the steps of the losses, gradient_norm and lr; seconds, images_per_second, peak_memory_mb.

    Raises:
        DivergedError: a loss is not finite.
    """
    device = model.device
    stage = (round, epoch)
    torch.manual_seed(stage_seed(config.seed, "dropout", *stage))  # dropout and drop path take no generator
    crops = stage_generator(config.seed, "crops", *stage)
    pairs = stage_generator(config.seed, "pairs", *stage)
    order = epoch_order(len(samples.images), config.training.batch_size, stage_generator(config.seed, "order", *stage))
    steps: list[dict[str, float]] = []
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
        norm = update_weights(model, optimizer, scaler, losses["loss"])
        step = {**losses, "gradient_norm": norm}
        numbers = torch.stack(list(step.values())).tolist()  # the one wait for the device in a step
        values = dict(zip(step, numbers, strict=True))
        if not math.isfinite(loss := values["loss"]):
            raise DivergedError(f"the loss became {loss} in round {round}, epoch {epoch}, step {number + 1}")
        steps.append({**values, "lr": config.optim.lr * factor})
    seconds = time.perf_counter() - started
    return {name: _finite_mean([step[name] for step in steps]) for name in steps[0]} | {
        "seconds": seconds,
        "images_per_second": len(order) * config.training.batch_size / seconds,
        "peak_memory_mb": peak_memory_mb(device),
    }


def _finite_mean(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def reset_peak_memory(device: torch.device) -> None:
    """Resets what `peak_memory_mb` counts, where a process trains more than once."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory used so far: by the trial on CUDA, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
