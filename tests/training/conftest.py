"""Data sets in memory, and a recipe that trains on them in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from elta_tune.config import TrialConfig
from elta_tune.data.cache.packs import Images
from elta_tune.data.dataset import Dataset, ImageSet, Split
from elta_tune.method.metrics import tail_cuts

RESIZE, CROP = 36, 32


class InMemory:
    """A pack of images that are not on disk."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def read_into(self, row: int, image: np.ndarray) -> None:
        """Copies an image."""
        image[:] = self.array[row]


def in_memory(array: np.ndarray) -> Images:
    """Images (N, S, S, 3) as trainings take them."""
    count, edge = array.shape[:2]
    return Images(edge, [InMemory(array)], np.zeros(count, np.int64), np.arange(count), np.zeros((count, 16), np.uint8))


def make_split(name: str, count: int, bins: int, scale: tuple[float, float], *, votes: bool = True) -> Split:
    """Images whose brightness follows their MOS."""
    random = np.random.default_rng([len(name), count])
    quality = random.uniform(0.1, 0.9, count)
    pixels = random.normal(255 * quality[:, None, None, None], 30, (count, RESIZE, RESIZE, 3)).clip(0, 255)
    large = pixels.astype(np.uint8)
    small = large[:, 2:-2, 2:-2]
    levels = np.linspace(*scale, bins)
    weights = np.exp(-(((levels - scale[0]) / (scale[1] - scale[0]) - quality[:, None]) ** 2) / 0.05)
    distributions = weights / weights.sum(axis=1, keepdims=True)
    return Split(
        name=name,
        file=Path(f"{name}.csv"),
        origin=f"{name}.csv",
        ids=np.array([f"{name}_{number}.jpg" for number in range(count)], dtype=object),
        images={RESIZE: in_memory(large), CROP: in_memory(small)},
        left_out=(),
        scores=distributions @ levels,
        distributions=distributions.astype(np.float32) if votes else None,
    )


def without_labels(split: Split) -> ImageSet:
    """The images of a split."""
    return ImageSet(**{field.name: getattr(split, field.name) for field in fields(ImageSet)})


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """`make_dataset(train=24, val=12, pool=10, bins=5, scale=(1, 5), votes=True, is_spread=False)`."""

    def make(
        *,
        train: int = 24,
        val: int = 12,
        pool: int = 10,
        bins: int = 5,
        scale: tuple[float, float] = (1.0, 5.0),
        votes: bool = True,
        is_spread: bool = False,
    ) -> Dataset:
        labelled = {
            name: make_split(name, count, bins, scale, votes=votes) for name, count in (("train", train), ("val", val))
        }
        return Dataset(
            train=labelled["train"],
            val=labelled["val"],
            test=None,
            pool=without_labels(make_split("pool", pool, bins, scale)) if pool else None,
            bins=np.linspace(*scale, bins) if votes else None,
            scale=scale,
            threshold=sum(scale) / 2,
            tail_cuts=tail_cuts(labelled["train"].scores),
            is_spread=is_spread,
        )

    return make


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    """Weights of a test_resnet in a file."""
    torch.manual_seed(5)
    file = tmp_path / "backbone.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    return file


@pytest.fixture
def quick() -> TrialConfig:
    """A recipe for data sets in memory: 32 px, three steps an epoch. Vary it with `quick.replace({…})`."""
    content: dict[str, Any] = {
        "data": {"root": ".", "resize": RESIZE, "crop": CROP},
        "model": {"backbone": "test_resnet", "pretrained": False},
        "optim": {"lr": 1e-3},
        "simloss": {"weight": 0.5},
        "training": {"epochs": 2, "batch_size": 8},
        "self_training": {"epochs": 2},
        "sharpening": {"threshold": 0.2},
        "evaluation": {"batch_size": 5},
    }
    return TrialConfig.model_validate(content)
