"""Pooled features: what a backbone that is not trained says of images, computed once.

They are those of the evaluation's crops: nothing is cropped at random or mirrored, so that an image has one row. A
frozen backbone's lie next to the cache of images, for all trials of all studies:

    CACHE/features-<key>/
    ├── features.npy         (N, D) float32
    ├── digest.npy           (16,) uint8: hash of the backbone's weights
    └── about.json           backbone, and the size of its images; its time is when it was last used

The key is a hash of the images' bytes, how they are decoded, the backbone, where its weights come from, and how many
images it takes at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.batches import Index, in_order, prefetch
from elta_tune.data.cache.decoding import RULE as DECODING
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.packs import Images
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.dataset import Dataset, ImageSet
from elta_tune.errors import DataError
from elta_tune.files import make_once
from elta_tune.training.backbone import check_backbone
from elta_tune.training.model import AestheticModel, place
from elta_tune.training.predict import exact_convolutions
from elta_tune.weights import weights_file

RULE = "1: evaluation crops, float32"
"""What turns pixels into features; another rule is another cache."""
Part = TypeVar("Part", bound=ImageSet)


@dataclass(frozen=True)
class Features:
    """Some rows of an array (M, D) of features, which replace images.

    `digest` (16,) identifies a frozen backbone's weights; None where the backbone was trained.
    """

    array: NDArray[np.float32]
    rows: Index
    digest: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D."""
        return int(self.array.shape[1])

    def gather(self, index: Index) -> NDArray[np.float32]:
        """Features (B, D) by their positions (B,)."""
        return self.array[self.rows[index]]

    def subset(self, index: Index) -> Features:
        """Only those at these positions."""
        return replace(self, rows=self.rows[index])

    def joined(self, other: Features) -> Features:
        """These, and those of another after them."""
        both = np.concatenate([self.array[self.rows], other.array[other.rows]])
        return replace(self, array=both, rows=np.arange(len(both)))


def with_features(dataset: Dataset, config: TrialConfig, compute: Callable[[ImageSet], Features]) -> Dataset:
    """A data set whose images are their features, at any requested size."""
    sizes = (config.data.resize, config.data.crop)

    def featured(images: Part) -> Part:
        return replace(images, images=dict.fromkeys(sizes, compute(images)))

    return replace(
        dataset,
        train=featured(dataset.train),
        val=featured(dataset.val),
        test=None if dataset.test is None else featured(dataset.test),
        pool=None if dataset.pool is None else featured(dataset.pool),
    )


@exact_convolutions()
@torch.inference_mode()
def compute_features(
    model: AestheticModel, split: ImageSet, config: TrialConfig, progress: Progress = no_progress
) -> Features:
    """What a model's backbone says of a split's evaluation crops, in float32."""
    model.eval()
    images = split.images[config.data.crop]
    parts: list[NDArray[np.float32]] = []
    for index, batch in prefetch(images, in_order(len(images), config.evaluation.batch_size), model.device):
        parts.append(model.backbone(model.normalized(batch)).float().cpu().numpy())
        progress(int(index[-1]) + 1, len(images), f"computing features of {split.name} images")
    array = np.concatenate(parts)
    return Features(array, np.arange(len(array)))


def print_when_done(done: int, total: int, what: str) -> None:
    """Prints one line when all is done, for the log of a trial."""
    if done == total:
        print(f"{what}: {total:,}", flush=True)


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's part of a model's weights."""
    return {name: value for name, value in state.items() if name.startswith("backbone.")}


def digest_of(state: Mapping[str, Tensor]) -> NDArray[np.uint8]:
    """A hash (16,) of weights by their names."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return np.frombuffer(digest.digest(), np.uint8)


def frozen_dataset(
    dataset: Dataset,
    config: TrialConfig,
    build: Callable[[], AestheticModel],
    *,
    device: torch.device,
    cache: ImageCache | None,
    progress: Progress = print_when_done,
) -> Dataset:
    """A data set whose images are the features of a frozen backbone.

    Args:
        build: makes the model, if something is not in the cache.
        cache: of the decoded images; without it nothing is kept.

    Raises:
        DataError: the cache can't be written.
        ModelError: an unknown backbone, missing weights.
    """
    check_backbone(config.model)
    models: list[AestheticModel] = []

    def model() -> AestheticModel:
        if not models:
            models.append(place(build(), device))
        return models[0]

    def compute(split: ImageSet) -> Features:
        images = split.images[config.data.crop]
        if cache is None or not isinstance(images, Images):
            features = compute_features(model(), split, config, progress)
            return replace(features, digest=digest_of(backbone_state(model().state_dict())))
        folder = cache.root / f"features-{_key(images, config, device)}"
        return _cached(folder, model, split, config, progress)

    return with_features(dataset, config, compute)


def _cached(
    folder: Path, model: Callable[[], AestheticModel], split: ImageSet, config: TrialConfig, progress: Progress
) -> Features:
    """Two processes that ask at once compute once."""

    def write(aside: Path) -> None:
        np.save(aside / "features.npy", compute_features(model(), split, config, progress).array)
        np.save(aside / "digest.npy", digest_of(backbone_state(model().state_dict())))
        facts = {"backbone": config.model.backbone, "edge": config.data.crop}
        (aside / "about.json").write_text(json.dumps(facts), encoding="utf-8")

    try:
        make_once(folder, write)
        os.utime(folder / "about.json")
        array: NDArray[np.float32] = np.load(folder / "features.npy", mmap_mode="r")
        return Features(array, np.arange(len(array)), np.load(folder / "digest.npy"))
    except OSError as error:
        raise DataError(f"{folder}: the features can't be kept: {error.strerror or error}") from error


def _key(images: Images, config: TrialConfig, device: torch.device) -> str:
    """What decides the features; device and batch, since with others sums run in another order."""
    model = config.model
    facts: dict[str, Any] = {"rule": (RULE, DECODING), "edge": images.edge, "backbone": model.backbone}
    facts |= {"timm": timm.__version__, "device": device.type, "batch": config.evaluation.batch_size}
    folder = Path(model.backbone.removeprefix("local-dir:")) if model.backbone.startswith("local-dir:") else None
    if weights := model.weights or (folder if model.pretrained else None):
        status = weights_file(weights).stat()
        facts |= {"weights": str(weights), "size": status.st_size, "time": status.st_mtime_ns}
    else:
        facts |= {"pretrained": model.pretrained, "seed": None if model.pretrained else config.seed}
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=12)
    digest.update(images.digests.tobytes())
    return digest.hexdigest()
