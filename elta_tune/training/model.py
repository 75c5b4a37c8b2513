"""The model: any timm backbone, and a head that predicts a distribution or a score (METHOD.md §3, §6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from elta_tune.config import ModelConfig
from elta_tune.data.batches import augment, normalize
from elta_tune.errors import ModelError, did_you_mean
from elta_tune.method.losses import emd_loss, mse_loss
from elta_tune.method.scores import mean_score
from elta_tune.training.seeding import stage_seed

SCALE = (1.0, 10.0)
"""The method's scale: its τ1, τ2 and β act on distances between scores of AVA's 1…10."""


class DistributionHead(nn.Sequential):
    """Features (B, D) → logits (B, K) of the rating distribution."""

    def __init__(self, width: int, hidden: int, bins: Tensor) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(bins)))
        self.register_buffer("bins", bins, persistent=False)
        self.bins: Tensor

    def loss(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """EMD to target distributions (B, K)."""
        return emd_loss(logits.softmax(dim=1), targets, reduction=reduction)

    def scores(self, logits: Tensor) -> Tensor:
        """Predicted scores (B,) on 1…10."""
        return mean_score(logits.softmax(dim=1), self.bins)


class ScoreHead(nn.Sequential):
    """Features (B, D) → one logit (B, 1), whose sigmoid is the score / 10."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(width, 1))

    def loss(self, logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Squared error to target scores (B, 1), both as score / 10."""
        return mse_loss(logits.sigmoid(), targets)

    def scores(self, logits: Tensor) -> Tensor:
        """Predicted scores (B,) on the scale that ends at 10."""
        return logits.sigmoid().squeeze(1) * SCALE[1]


class AestheticModel(nn.Module):
    """A backbone and a head; `mean` and `std` (3,) normalise images of 0…1 as the backbone expects them."""

    def __init__(self, backbone: nn.Module, head: DistributionHead | ScoreHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        data = timm.data.resolve_model_data_config(backbone)  # type: ignore[attr-defined, no-untyped-call]
        self.register_buffer("mean", torch.tensor(data["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(data["std"]), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def augmented(self, images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        """Inputs of a training step, (B, 3, crop, crop), from uint8 images (B, S, S, 3) of the cache."""
        return self.normalized(augment(images, crop, generator))

    def normalized(self, images: Tensor) -> Tensor:
        """Inputs of an evaluation, (B, 3, S, S), from uint8 images (B, S, S, 3) of the cache."""
        return normalize(images, self.mean, self.std)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, 3, S, S) → pooled features (B, D) and logits."""
        features = self.backbone(images)
        return features, self.head(features)


def build_model(config: ModelConfig, *, bins: Tensor | None, size: int, seed: int) -> AestheticModel:
    """A new model on the CPU.

    Args:
        bins: (K,) ratings on 1…10 that the distribution head predicts; not needed for scores.
        size: edge of the images in pixels, for backbones that are built for one size.
        seed: of the weights that are not loaded.

    Raises:
        ModelError: unknown backbone; weights that are missing, unreadable or of another model.
    """
    torch.manual_seed(seed)
    backbone = _backbone(config, size)
    torch.manual_seed(stage_seed(seed, "head"))
    head: DistributionHead | ScoreHead
    if config.head == "emd":
        if bins is None:
            raise ModelError(
                "model.head: emd needs ratings with a distribution; these have scores only",
                "predict scores: --set model.head=mse; or spread them over bins: --set data.spread=WIDTH",
            )
        head = DistributionHead(backbone.head_hidden_size, config.hidden_size, bins)
    else:
        head = ScoreHead(backbone.head_hidden_size, config.dropout)
    return AestheticModel(backbone, head)


def _backbone(config: ModelConfig, size: int) -> Any:
    check_backbone(config)
    options: dict[str, Any] = {}
    pretrained_cfg = timm.models.get_pretrained_cfg(config.backbone)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = size
    pretrained = config.pretrained and config.weights is None
    try:
        backbone = timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ModelError(
            f"model.backbone: {config.backbone} can't be built for {size}×{size} images: {error}"
        ) from error
    except (RuntimeError, OSError) as error:
        raise ModelError(
            f"model.pretrained: the weights of {config.backbone} can't be had: {error}",
            "name a file: --set model.weights=FILE, or train from nothing: --set model.pretrained=false",
        ) from error
    if config.weights is not None:
        _load_weights(backbone, config.weights)
    return backbone


def check_backbone(config: ModelConfig) -> None:
    """Refuses what can't be built, without building it.

    Raises:
        ModelError: unknown backbone, missing weights.
    """
    if not timm.is_model(config.backbone.split(".")[0]):
        raise ModelError(
            f"model.backbone: timm has no {config.backbone!r}{did_you_mean(config.backbone, timm.list_models())}"
        )
    if config.weights is not None and not config.weights.is_file():
        raise ModelError(f"model.weights: {config.weights}: no such file")


def _load_weights(backbone: nn.Module, path: Path) -> None:
    """Loads backbone weights; what a classifier head leaves over is ignored, what the backbone misses is refused."""
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds for a file that is not theirs
        raise ModelError(f"model.weights: {path}: can't be read as weights: {error}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    own = backbone.state_dict()
    try:
        wrong = [name for name, value in own.items() if name not in state or state[name].shape != value.shape]
    except (AttributeError, TypeError) as error:
        raise ModelError(f"model.weights: {path}: holds no tensors by name") from error
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        raise ModelError(
            f"model.weights: {path}: not the weights of this backbone: {len(wrong)} of its {len(own)} tensors "
            f"are missing or of another shape, the first {wrong[0]}"
        )
    backbone.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
