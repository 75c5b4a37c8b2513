"""The model: any timm backbone, and a head that predicts a distribution or a score (docs/method.md §3, §6)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from elta_tune.config import ModelConfig, TrialConfig
from elta_tune.data.batches import augment, normalize
from elta_tune.errors import ModelError
from elta_tune.method.losses import emd_loss, mse_loss
from elta_tune.method.scores import SCALE, mean_score
from elta_tune.suggestions import did_you_mean
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
    backbone = _backbone(config, size)
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


def _backbone(config: ModelConfig, size: int) -> Any:
    check_backbone(config)
    options: dict[str, Any] = {}
    pretrained_cfg = timm.models.get_pretrained_cfg(config.backbone)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        options["img_size"] = size
    pretrained = config.pretrained and config.weights is None
    try:
        backbone = timm.create_model(config.backbone, pretrained=pretrained, num_classes=0, **options)
    except (AssertionError, TypeError, ValueError, RuntimeError, OSError) as error:
        if pretrained and isinstance(error, RuntimeError | OSError):
            raise ModelError(
                f"model.pretrained: the weights of {config.backbone} can't be had: {error}",
                "name a file: `model.weights=FILE`, or train from nothing: `model.pretrained=false`",
            ) from error
        raise ModelError(
            f"model.backbone: {config.backbone} can't be built for {size}×{size} images: {error}"
        ) from error
    if config.weights is not None:
        _load_weights(backbone, config.weights)
    return backbone


def check_backbone(config: ModelConfig) -> None:
    """Refuses what can't be built, without building it.

    Raises:
        ModelError: unknown backbone, missing weights.
    """
    name, dot, tag = config.backbone.partition(".")
    if not timm.is_model(name):
        raise ModelError(f"model.backbone: timm has no {name!r}{did_you_mean(name, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{name}.*")]
    if dot and tag not in tags:
        raise ModelError(f"model.backbone: timm has no weights {tag!r} of {name}{did_you_mean(tag, tags)}")
    if config.weights is not None and not config.weights.is_file():
        raise ModelError(f"model.weights: {config.weights}: no such file")


def check_model(config: TrialConfig) -> None:
    """Refuses a model that can't be built or can't take the images, by building it without a download.

    Raises:
        ModelError: names the backbone or the file of weights.
    """
    local = config.model.model_copy(update={"pretrained": False})
    bins = torch.arange(2.0)  # how many there are makes no difference
    check_images(build_model(local, bins=bins, size=config.data.crop, seed=0), config.model, config.data.crop)


def check_images(model: AestheticModel, config: ModelConfig, size: int) -> None:
    """Refuses a backbone that can't take images of `size` pixels or pools no features of them, by trying one.

    Raises:
        ModelError: names the backbone.
    """
    try:
        with torch.inference_mode():
            features = model.backbone.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # each backbone has its own way to fail
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(f"model.backbone: {config.backbone} can't take {size}×{size} images: {reason}") from error
    if features.shape != (1, model.backbone.head_hidden_size):
        raise ModelError(
            f"model.backbone: {config.backbone} pools no features: an image gives an array {tuple(features.shape)}"
        )


def _load_weights(backbone: nn.Module, path: Path) -> None:
    """Loads backbone weights; what a classifier head leaves over is ignored, what the backbone misses is refused."""
    try:
        state = timm.models.load_state_dict(str(path), weights_only=True)  # timm's older versions would run code
    except Exception as error:  # safetensors and torch raise many kinds for a file that is not theirs
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ModelError(f"model.weights: {path}: can't be read as safetensors or pth: {reason}") from error
    wrong = _unfit(backbone, state)
    if wrong and (adapted := _adapted(backbone, state)) is not None:
        state, wrong = adapted, _unfit(backbone, adapted)
    if wrong:
        raise ModelError(
            f"model.weights: {path}: not the weights of this backbone: {len(wrong)} of its "
            f"{len(backbone.state_dict())} tensors are missing or of another shape, the first {wrong[0]}"
        )
    backbone.load_state_dict({name: state[name] for name in backbone.state_dict() if name in state}, strict=False)


def _unfit(backbone: nn.Module, state: dict[str, Any]) -> list[str]:
    """Names of the backbone's tensors that are not in a file, or have another shape there."""
    shapes = {name: getattr(value, "shape", None) for name, value in state.items()}
    own = backbone.state_dict().items()
    return [name for name, value in own if shapes.get(name) != value.shape and not name.endswith("num_batches_tracked")]


def _adapted(backbone: nn.Module, state: dict[str, Any]) -> dict[str, Any] | None:
    """Weights as timm adapts its own downloads: names of the first authors, embeddings for another image size."""
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    try:
        return None if adapt is None else dict(adapt(state, backbone))
    except Exception:  # made for files of the backbone's own family; that others do not fit is said elsewhere
        return None


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights on the CPU."""
    return {name: value.detach().to("cpu", copy=True).contiguous() for name, value in model.state_dict().items()}
