"""Epochs of a model on a data set in memory, one at a time."""

from __future__ import annotations

import math
from typing import Any

import torch

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.method.scores import method_bins, to_method_scale
from elta_tune.training.epoch import Samples, train_epoch
from elta_tune.training.model import AestheticModel, build_model
from elta_tune.training.optimizer import build_optimizer


def build(config: TrialConfig, dataset: Dataset) -> AestheticModel:
    bins = None if dataset.bins is None else method_bins(dataset.bins, dataset.scale)
    return build_model(config.model, bins=bins, size=config.data.crop, seed=0)


def labels(config: TrialConfig, dataset: Dataset) -> Samples:
    scores = torch.from_numpy(to_method_scale(dataset.train.scores, dataset.scale)).float()
    targets = scores[:, None] / 10 if config.model.head == "mse" else torch.from_numpy(dataset.train.distributions)
    return Samples(dataset.train.images[config.data.resize], targets, scores)


class Training:
    """Epochs of a model, with what its optimizer saw at each step."""

    def __init__(self, config: TrialConfig, dataset: Dataset, *, scale: float | None = None) -> None:
        self.config, self.samples = config, labels(config, dataset)
        self.model = build(config, dataset)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        gradients = [p.grad.double().numpy().ravel() for p in self.model.parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(float(gradient @ gradient) for gradient in gradients)))

    def epoch(self, epoch: int = 1, *, epochs: int = 1, round: int = 0) -> dict[str, float]:
        arguments: dict[str, Any] = {"round": round, "epoch": epoch, "epochs": epochs}
        return train_epoch(self.model, self.optimizer, self.scaler, self.samples, self.config, **arguments)
