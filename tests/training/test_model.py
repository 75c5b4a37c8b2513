"""Any timm backbone with either head; weights from files; what does not fit is named and refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from elta_tune.config import ModelConfig
from elta_tune.errors import ModelError
from elta_tune.training.backbone import check_images
from elta_tune.training.model import AestheticModel, build_model, trained_state

BINS = torch.linspace(1, 10, 5)


def config(backbone: str = "test_resnet", **values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, "pretrained": False, **values})


def build(backbone: str = "test_resnet", *, size: int = 32, seed: int = 0, **values: Any) -> AestheticModel:
    return build_model(config(backbone, **values), bins=BINS, size=size, seed=seed)


@pytest.mark.parametrize(
    ("backbone", "width", "size"),
    [
        ("test_resnet", 96, 24),
        ("mobilenetv3_small_050", 1024, 32),  # num_features is 288 there
        ("test_vit", 64, 48),  # built for 160 px
        ("test_maxvit", 128, 64),  # windows that must divide the image
        ("swin_tiny_patch4_window7_224", 768, 32),
        ("test_efficientnet.r160_in1k", 256, 32),
    ],
)
def test_every_kind_of_backbone_gives_pooled_features_and_logits(backbone: str, width: int, size: int) -> None:
    model = build(backbone, size=size, hidden_size=7).eval()
    check_images(model.backbone, config(backbone), size)
    with torch.no_grad():
        features, logits = model(torch.randn(2, 3, size, size))
    assert features.shape == (2, width)
    assert logits.shape == (2, 5)
    assert [tuple(parameter.shape) for parameter in model.head.parameters()] == [(7, width), (7,), (5, 7), (5,)]


def test_distribution_head_scores_by_bins_on_the_method_scale() -> None:
    model = build()
    logits = torch.randn(3, 5, dtype=torch.float64)
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.head.scores(logits), probabilities @ [1, 3.25, 5.5, 7.75, 10], rtol=1e-12)


def test_score_head_is_dropout_and_a_sigmoid_times_ten() -> None:
    model = build(head="mse", dropout=0.5)
    logits = torch.tensor([[-1.0], [0.0], [2.0]])
    np.testing.assert_allclose(model.head.scores(logits), 10 / (1 + np.exp([1.0, 0.0, -2.0])), rtol=1e-6)
    features = torch.ones(400, 96)
    with torch.no_grad():
        model.head[1].weight.fill_(1.0)
        dropped = (model.train().head[0](features) == 0).float().mean()
    assert 0.4 < dropped < 0.6
    assert model.head.loss(logits, torch.tensor([[0.1], [0.5], [0.9]]), "batch").item() == pytest.approx(
        np.mean([(1 / (1 + np.e) - 0.1) ** 2, 0, (1 / (1 + np.exp(-2)) - 0.9) ** 2])
    )


def test_head_weights_depend_on_the_seed_not_the_backbone() -> None:
    one, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.head[0].weight, other.head[0].weight)
    assert not torch.equal(one.backbone.conv1[0].weight, other.backbone.conv1[0].weight)


def test_mean_and_std_are_the_backbone_s_own() -> None:
    assert build("resnet10t").mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert build("test_vit").std.tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_a_state_dict_holds_all_that_is_trained_and_nothing_else(head: str) -> None:
    model = build(head=head)
    state = trained_state(model)
    assert set(state) == {f"backbone.{name}" for name in model.backbone.state_dict()} | {
        f"head.{name}" for name, _ in model.head.named_parameters()
    }
    with torch.no_grad():
        model.head[-1].weight.add_(1.0)
    assert not torch.equal(state[f"head.{len(model.head) - 1}.weight"], model.head[-1].weight)


def test_a_distribution_head_needs_distributions() -> None:
    with pytest.raises(ModelError, match=r"model\.head: emd needs ratings with a distribution"):
        build_model(config(), bins=None, size=32, seed=0)
    build_model(config(head="mse"), bins=None, size=32, seed=0)
