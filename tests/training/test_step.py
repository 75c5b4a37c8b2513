"""The loss of a batch against a slow, literal transcription of docs/method.md §1-§3 in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from elta_tune.config import TrialConfig
from elta_tune.training.model import AestheticModel, build_model
from elta_tune.training.step import step_losses

Array = NDArray[np.float64]
BATCH, BINS = 6, np.linspace(1, 10, 5)


def transcription(
    features: Array,
    targets: Array,
    scores: Array,
    pairs: list[tuple[int, int]],
    model: AestheticModel,
    config: TrialConfig,
) -> tuple[float, float, float]:
    """(total, task, similarity) of a batch whose drawn pairs are known."""
    distances = [abs(scores.mean() - score) for score in scores]
    anchor = [np.exp(distance / config.mixup.tau_1) for distance in distances]
    anchor = [value / sum(anchor) for value in anchor]
    rows, labels, marks = list(features), list(targets), list(scores)
    for i, j in pairs:
        weight = anchor[i] / (anchor[i] + anchor[j])
        rows.append(weight * features[i] + (1 - weight) * features[j])
        labels.append(weight * targets[i] + (1 - weight) * targets[j])
        marks.append(weight * scores[i] + (1 - weight) * scores[j])
    task = task_loss(rows, labels, model, config)
    differences = []
    for i, j in itertools.product(range(len(rows)), repeat=2):
        cosine = rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j]))
        similar = 1 - abs(marks[i] - marks[j]) / (max(marks) - min(marks))
        differences.append((cosine - similar) ** 2)
    similarity = float(np.mean(differences))
    return task + config.simloss.weight * similarity, task, similarity


def task_loss(rows: list[Array], labels: list[Array], model: AestheticModel, config: TrialConfig) -> float:
    layers = [parameter.detach().double().numpy() for parameter in model.head.parameters()]
    squares = []
    for row, label in zip(rows, labels, strict=True):
        if config.model.head == "mse":
            weight, bias = layers
            squares.append([(1 / (1 + np.exp(-(weight @ row + bias)[0])) - label[0]) ** 2])
        else:
            weight, bias, last_weight, last_bias = layers
            logits = last_weight @ np.maximum(weight @ row + bias, 0) + last_bias
            predicted = np.exp(logits) / np.exp(logits).sum()
            squares.append([(sum(predicted[: k + 1]) - sum(label[: k + 1])) ** 2 for k in range(len(label))])
    if config.model.head == "mse":
        return float(np.mean(squares))
    if config.training.emd_reduction == "batch":
        return float(np.sqrt(np.mean(squares)))
    return float(np.mean([np.sqrt(np.mean(row)) for row in squares]))


class Batch:
    """A batch, its model, and what the head was given."""

    def __init__(self, config: TrialConfig) -> None:
        random = torch.Generator().manual_seed(3)
        self.config = config
        self.model = build_model(config.model, bins=torch.from_numpy(BINS).float(), size=16, seed=0).train()
        self.images = torch.randn(BATCH, 3, 16, 16, generator=random)
        distributions = torch.randn(BATCH, 5, generator=random).mul(2).softmax(dim=1)
        self.scores = (distributions * torch.from_numpy(BINS).float()).sum(dim=1)
        self.targets = self.scores[:, None] / 10 if config.model.head == "mse" else distributions
        self.seen: list[Array] = []
        self.model.head.register_forward_pre_hook(
            lambda _, inputs: self.seen.append(inputs[0].detach().double().numpy())
        )

    def losses(self, **changes: Any) -> dict[str, torch.Tensor]:
        arguments = {"precision": torch.float32, "generator": torch.Generator().manual_seed(0), **changes}
        return step_losses(self.model, self.images, self.targets, self.scores, self.config, **arguments)

    def drawn_pairs(self, mixed: Array, features: Array) -> list[tuple[int, int]]:
        """Which two rows each mixed row lies between, at the paper's λ."""
        scores = self.scores.double().numpy()
        odds = np.exp(np.abs(scores.mean() - scores) / self.config.mixup.tau_1)
        pairs = []
        for row in mixed:
            fits = [
                (i, j)
                for i, j in itertools.permutations(range(BATCH), 2)
                if np.allclose(row, (odds[i] * features[i] + odds[j] * features[j]) / (odds[i] + odds[j]), atol=1e-4)
            ]
            assert len(fits) == 2, "λ is symmetric: i with j is j with i, and nothing else is like them"
            pairs.append(fits[0])
        return pairs


@pytest.mark.parametrize("pairs", [0, 1, 0.5, 20])
@pytest.mark.parametrize(
    "values",
    [
        {"simloss.weight": 0.0},
        {"simloss.weight": 1.7, "training.emd_reduction": "sample", "mixup.tau_1": 2.0},
        {"simloss.weight": 1.0, "model.head": "mse", "model.dropout": 0.0, "mixup.tau_2": 10.0},
    ],
)
def test_losses_are_the_method_s(values: dict[str, Any], pairs: float, quick: TrialConfig) -> None:
    batch = Batch(quick.replace({**values, "mixup.pairs": pairs}))
    losses = batch.losses()
    (seen,) = batch.seen
    features, mixed = seen[:BATCH], seen[BATCH:]
    assert len(mixed) == {0: 0, 1: 1, 0.5: 3, 20: BATCH}[pairs]
    np.testing.assert_allclose(features, batch.model.backbone(batch.images).detach(), atol=1e-5)
    drawn = batch.drawn_pairs(mixed, features)
    expected = transcription(
        features, batch.targets.double().numpy(), batch.scores.double().numpy(), drawn, batch.model, batch.config
    )
    found = [losses[name].item() for name in ("loss", "loss_task", "loss_similarity")]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradients_reach_the_backbone_but_alignment_not_the_head(quick: TrialConfig) -> None:
    gradients = []
    for weight in (0.0, 1.0):
        batch = Batch(quick.replace({"simloss.weight": weight}))
        batch.losses()["loss"].backward()
        gradients.append([module.weight.grad for module in (batch.model.backbone.conv1[0], batch.model.head[2])])
    (plain_backbone, plain_head), (aligned_backbone, aligned_head) = gradients
    assert plain_backbone.abs().sum() > 0
    assert not torch.allclose(plain_backbone, aligned_backbone)
    assert torch.allclose(plain_head, aligned_head)  # FLSA acts on features


def test_bfloat16_is_used_only_in_the_backbone(quick: TrialConfig) -> None:
    batch = Batch(quick)
    kinds: list[torch.dtype] = []
    batch.model.backbone.conv1[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    batch.model.head.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    exact = batch.losses()
    rounded = batch.losses(precision=torch.bfloat16)
    assert kinds == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert rounded["loss"].dtype == torch.float32
    assert rounded["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)
    assert rounded["loss"].item() != exact["loss"].item()


def test_the_generator_draws_the_pairs_and_nothing_else(quick: TrialConfig) -> None:
    batch = Batch(quick.replace({"mixup.tau_1": 50.0, "mixup.tau_2": 0.01}))
    totals = [batch.losses(generator=torch.Generator().manual_seed(seed))["loss"].item() for seed in (0, 0, 1, 2, 3)]
    assert totals[0] == totals[1]
    assert len(set(totals)) > 2
    torch.manual_seed(7)
    before = torch.get_rng_state()
    batch.losses()
    assert torch.equal(before, torch.get_rng_state())
