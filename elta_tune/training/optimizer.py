"""How weights are updated: the optimizer, its learning rate, and the arithmetic of the forward pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elta_tune.config import OptimConfig, TrialConfig
from elta_tune.training.model import AestheticModel


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


def update_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor
) -> Tensor:
    """One optimizer step; returns the gradient's norm, infinite where float16 overflowed and the step was skipped."""
    optimizer.zero_grad()
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    scaler.step(optimizer)
    scaler.update()
    return norm
