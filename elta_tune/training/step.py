"""One training step: forward, mixup, losses (docs/method.md §1-§3)."""

from __future__ import annotations

import torch
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.method.losses import similarity_loss
from elta_tune.method.mixup import mix
from elta_tune.training.model import AestheticModel


def step_losses(
    model: AestheticModel,
    images: Tensor,
    targets: Tensor,
    scores: Tensor,
    config: TrialConfig,
    *,
    precision: torch.dtype,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The ELTA loss of one batch.

    Args:
        images: (B, 3, S, S), normalised.
        targets: (B, K) distributions, or (B, 1) scores / 10.
        scores: (B,) on 1…10.
        precision: arithmetic of the backbone; mixing, head and losses are float32.
        generator: draws the mixed pairs.

    Returns:
        Scalars by the names that an epoch records: `loss` = `loss_task` + w · `loss_similarity`.
    """
    with torch.autocast(images.device.type, dtype=precision, enabled=precision != torch.float32):
        features = model.backbone(images)
    features, targets, scores = mix(
        features.float(),
        targets,
        scores,
        tau_1=config.mixup.tau_1,
        tau_2=config.mixup.tau_2,
        pairs=config.mixup.pairs,
        alpha=config.mixup.alpha,
        generator=generator,
    )
    task = model.head.loss(model.head(features), targets, config.training.emd_reduction)
    similarity = similarity_loss(features, scores)
    # It trains the backbone only: with features that have no gradient it is recorded, but not part of the loss.
    weight = config.simloss.weight if features.requires_grad else 0.0
    return {"loss": task + weight * similarity, "loss_task": task, "loss_similarity": similarity}
