"""The model: any timm backbone, and a head that predicts a distribution or a score (docs/method.md §3, §6)."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from elta_tune.config import ModelConfig
from elta_tune.data.batches import augment, normalize
from elta_tune.errors import ModelError
from elta_tune.method.losses import emd_loss, mse_loss
from elta_tune.method.scores import SCALE, mean_score
from elta_tune.training.backbone import build_backbone
from elta_tune.training.seeding import stage_seed


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

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.head.parameters()).device

    def augmented(self, images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        """What a training step sees of uint8 images (B, S, S, 3): random crops (B, crop, crop, 3), half mirrored."""
        return augment(images, crop, generator)

    def normalized(self, images: Tensor) -> Tensor:
        """Inputs of the backbone, (B, 3, S, S), from uint8 images (B, S, S, 3)."""
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
    backbone = build_backbone(config, size)
    return AestheticModel(backbone, build_head(config, width=backbone.head_hidden_size, bins=bins, seed=seed))


def place(model: AestheticModel, device: torch.device) -> AestheticModel:
    """The model, moved to a device in the one memory format of trainings: in another one sums run in another order."""
    return model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def build_head(config: ModelConfig, *, width: int, bins: Tensor | None, seed: int) -> DistributionHead | ScoreHead:
    """A new head on features (B, width), the same with and without a backbone of the same seed.

    Raises:
        ModelError: the head predicts distributions, and there are none.
    """
    torch.manual_seed(stage_seed(seed, "head"))
    if config.head == "mse":
        return ScoreHead(width, config.dropout)
    if bins is None:
        raise ModelError(
            "model.head: emd needs ratings with a distribution; these have scores only",
            "predict scores: `model.head=mse`; or spread them over bins: `data.spread=WIDTH`",
        )
    return DistributionHead(width, config.hidden_size, bins)


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
