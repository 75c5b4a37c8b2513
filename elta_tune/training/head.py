"""Training only the head, on computed features: with a frozen backbone, or afterwards (docs/method.md §5).

The similarity loss acts on the backbone and so has no gradient here; mixing acts on features as always.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elta_tune.config import TrialConfig
from elta_tune.errors import ModelError
from elta_tune.training.features import backbone_state, digest_of
from elta_tune.training.model import AestheticModel, DistributionHead, ScoreHead, build_model
from elta_tune.training.seeding import stage_seed


class HeadOnly(AestheticModel):
    """A model whose inputs are features (B, D) instead of images.

    The weights of a frozen backbone are not saved with the head's; `backbone_digest` (16,) identifies them.
    """

    def __init__(self, head: DistributionHead | ScoreHead, digest: NDArray[np.uint8] | None) -> None:
        nn.Module.__init__(self)
        self.backbone = nn.Identity()
        self.head = head
        if digest is not None:
            self.register_buffer("backbone_digest", torch.from_numpy(digest.copy()))

    def augmented(self, images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
        """The features as they are: they were computed without augmentation."""
        return images

    def normalized(self, images: Tensor) -> Tensor:
        """The features as they are."""
        return images


def with_frozen_backbone(state: dict[str, Tensor], config: TrialConfig, bins: list[float] | None) -> dict[str, Tensor]:
    """The weights of the whole model; a trial with a frozen backbone saves only the head's.

    Args:
        state: what the trial kept.
        bins: (K,) ratings on 1…10.

    Raises:
        ModelError: the backbone's weights are unavailable, or have changed.
    """
    digest = state["backbone_digest"]
    seed = stage_seed(config.seed, "model", 0)
    known = None if bins is None else torch.tensor(bins)
    model = build_model(config.model, bins=known, size=config.data.crop, seed=seed)
    backbone = backbone_state(model.state_dict())
    if not np.array_equal(digest.numpy(), digest_of(backbone)):
        raise ModelError(
            f"{config.model.backbone}: its weights are not those that the head was trained on",
            f"restore {config.model.weights}" if config.model.weights else None,
        )
    return {**backbone, **{name: value for name, value in state.items() if name.startswith("head.")}}
