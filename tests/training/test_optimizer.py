"""The learning rate by its formula, and optimizers by their papers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from single_epochs import Training, build

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.training.optimizer import build_optimizer

MakeDataset = Callable[..., Dataset]


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_rises_and_falls_by_the_formula(
    schedule: str, warmup: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    values = {"optim.schedule": schedule, "optim.warmup_epochs": warmup, "optim.lr": 0.02}
    config = quick.replace({**values, "optim.backbone_lr_factor": 0.25})
    training = Training(config, make_dataset(train=24))  # 3 steps an epoch
    recorded = [training.epoch(epoch, epochs=4)["lr"] for epoch in (1, 2, 3, 4)]
    expected = []
    for step in range(1, 13):
        done = step / 3
        if done < warmup:
            expected.append(0.02 * done / warmup)
        elif schedule == "constant":
            expected.append(0.02)
        else:
            expected.append(0.02 * (1 + math.cos(math.pi * (done - warmup) / (4 - warmup))) / 2)
    backbone, head = np.array(training.rates).T
    np.testing.assert_allclose(head, expected, atol=1e-12)
    np.testing.assert_allclose(backbone, 0.25 * np.array(expected), atol=1e-12)
    np.testing.assert_allclose(recorded, np.array(expected).reshape(4, 3).mean(axis=1), atol=1e-12)


def reference_step(name: str, lr: float, momentum: float, decay: float, weight: Any, gradients: list[Any]) -> Any:
    """Two steps of the optimizers, from their papers."""
    first, second, velocity = np.zeros_like(weight), np.zeros_like(weight), None
    for t, gradient in enumerate(gradients, start=1):
        if name == "adamw":
            weight = weight - lr * decay * weight
        slope = gradient if name == "adamw" else gradient + decay * weight
        if name == "sgd":
            velocity = slope if velocity is None else momentum * velocity + slope
            weight = weight - lr * (slope + momentum * velocity if momentum else slope)
            continue
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weight = weight - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("name", "momentum"), [("adam", 0.9), ("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
def test_optimizers_step_as_in_their_papers(
    name: str, momentum: float, decay: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    values = {"optim.name": name, "optim.momentum": momentum, "optim.weight_decay": decay, "optim.lr": 0.01}
    model = build(quick.replace(values), make_dataset())
    optimizer = build_optimizer(model, quick.replace({**values, "optim.backbone_lr_factor": 0.5}).optim)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"]
    random = np.random.default_rng(0)
    for parameter, lr in ((model.backbone.conv1[0].weight, 0.005), (model.head[2].bias, 0.01)):
        start = parameter.detach().double().numpy().copy()
        gradients = [random.normal(size=parameter.shape) for _ in range(2)]
        for gradient in gradients:
            optimizer.zero_grad()
            parameter.grad = torch.from_numpy(gradient).float()
            optimizer.step()
        expected = reference_step(name, lr, momentum, decay, start, gradients)
        np.testing.assert_allclose(parameter.detach(), expected, atol=1e-6)
