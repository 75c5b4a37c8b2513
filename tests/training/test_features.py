"""The cache of features."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.dataset import Dataset
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import ModelError
from elta_tune.training.features import Features, frozen_dataset
from elta_tune.training.model import AestheticModel
from elta_tune.training.self_training import compute_frozen
from elta_tune.training.state import new_model

CPU = torch.device("cpu")


@pytest.fixture
def config(data_root: Path, weights_file: Path) -> TrialConfig:
    """A recipe with a frozen backbone."""
    return TrialConfig().replace(
        {
            "data.root": str(data_root),
            "data.resize": 36,
            "data.crop": 32,
            "model.backbone": "test_resnet",
            "model.weights": str(weights_file),
            "model.freeze": True,
        }
    )


def features(config: TrialConfig, cache: Path, dataset: Dataset | None = None) -> Dataset:
    dataset = dataset or open_dataset(config.data, ImageCache(cache))
    return frozen_dataset(
        dataset, config, lambda: new_model(config, dataset, round=0), device=CPU, cache=ImageCache(cache)
    )


def never() -> AestheticModel:
    raise AssertionError("the features are there already")


def rows(dataset: Dataset, split: str) -> np.ndarray:
    found = next(iter(getattr(dataset, split).images.values()))
    assert isinstance(found, Features)
    return found.gather(np.arange(len(found)))


def test_features_are_those_of_timm_for_the_files(config: TrialConfig, cache: Path, weights_file: Path) -> None:
    """From file to feature by Pillow and timm alone."""
    found = features(config, cache)
    backbone = timm.create_model("test_resnet", checkpoint_path=weights_file, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(backbone)
    assert config.data.root is not None
    for split in ("train", "val", "pool"):
        for number, name in enumerate(getattr(found, split).ids[:3]):
            image = Image.open(config.data.root / "images" / name).resize((32, 32), Image.Resampling.BILINEAR)
            pixels = (np.asarray(image, dtype=np.float32) / 255 - data["mean"]) / data["std"]
            with torch.inference_mode():
                expected = backbone(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None])
            np.testing.assert_allclose(rows(found, split)[number], expected[0].numpy(), atol=1e-4, rtol=1e-4)


def test_features_are_computed_once_for_all(config: TrialConfig, cache: Path) -> None:
    dataset = open_dataset(config.data, ImageCache(cache))
    first = features(config, cache, dataset)
    again = frozen_dataset(
        dataset, config.replace({"optim.lr": 0.5, "seed": 9}), never, device=CPU, cache=ImageCache(cache)
    )
    for split in ("train", "val", "pool"):
        np.testing.assert_array_equal(rows(first, split), rows(again, split))


@pytest.mark.parametrize("change", ["weights", "crop", "images", "backbone"])
def test_other_weights_crops_or_images_are_other_features(
    change: str, config: TrialConfig, cache: Path, tmp_path: Path, weights_file: Path
) -> None:
    before = rows(features(config, cache), "val")
    if change == "weights":
        state = timm.create_model("test_resnet", num_classes=0).state_dict()
        save_file({name: value + 0.01 * value.is_floating_point() for name, value in state.items()}, weights_file)
    elif change == "crop":
        config = config.replace({"data.crop": 24})
    elif change == "backbone":
        config = config.replace(
            {"model.backbone": "test_efficientnet", "model.weights": None, "model.pretrained": False}
        )
    else:
        assert config.data.root is not None
        shutil.copytree(config.data.root, tmp_path / "root")
        first = open_dataset(config.data, ImageCache(cache)).val.ids[0]
        Image.new("RGB", (40, 40), (250, 10, 10)).save(tmp_path / "root" / "images" / first)
        config = config.replace({"data.root": str(tmp_path / "root")})
    after = rows(features(config, cache), "val")
    assert before.shape != after.shape or not np.allclose(before[0], after[0])


def test_images_taken_more_or_fewer_at_a_time_are_other_features(config: TrialConfig, tmp_path: Path) -> None:
    """Sums run in another order: a trial must find those that its own evaluation computes."""
    for size, folders in ((128, 3), (5, 6), (128, 6)):
        features(config.replace({"evaluation.batch_size": size}), tmp_path / "cache")
        assert len(list((tmp_path / "cache").glob("features-*"))) == folders


def test_a_pool_that_no_round_reads_is_left_out(config: TrialConfig, tmp_path: Path) -> None:
    dataset = open_dataset(config.data, ImageCache(tmp_path / "cache"))
    seen: list[str] = []
    for rounds, splits in ((0, {"train", "val"}), (1, {"train", "val", "pool"})):
        changed = config.replace({"self_training.rounds": rounds})
        compute_frozen(changed, dataset, ImageCache(tmp_path / "cache"), lambda done, total, what: seen.append(what))
        assert {what.split()[-2] for what in seen} == splits


def test_features_are_listed_and_removed_as_cache_parts(config: TrialConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dataset = features(config, cache)
    os.utime(next(cache.glob("features-*/about.json")), (1, 1))
    features(config, cache)
    entries = [entry for entry in ImageCache(cache).entries() if entry.backbone]
    assert {entry.key for entry in entries} == {path.name for path in cache.glob("features-*")}
    counts = [len(split.ids) for split in (dataset.train, dataset.val, dataset.pool, dataset.test) if split]
    assert sorted(entry.images for entry in entries) == sorted(counts)
    for entry in entries:
        assert (entry.folder, entry.edge, entry.backbone) == (None, 32, "test_resnet")
        assert entry.bytes == sum(file.stat().st_size for file in (cache / entry.key).iterdir())
        assert abs(entry.used - time.time()) < 100
        assert ImageCache(cache).remove(entry.key) == entry
    assert not [path for path in cache.iterdir() if "features" in path.name]
    for split in ("train", "val"):  # they are computed again
        np.testing.assert_array_equal(rows(features(config, cache), split), rows(dataset, split))


def test_random_weights_are_those_of_the_seed(config: TrialConfig, cache: Path) -> None:
    untrained = config.replace({"model.weights": None, "model.pretrained": False})
    first, second = features(untrained, cache), features(untrained.replace({"seed": 1}), cache)
    assert not np.allclose(rows(first, "val"), rows(second, "val"))
    np.testing.assert_array_equal(rows(first, "val"), rows(features(untrained, cache), "val"))


def test_missing_weights_are_an_error_even_with_cached_features(
    config: TrialConfig, cache: Path, weights_file: Path
) -> None:
    features(config, cache)
    weights_file.unlink()
    with pytest.raises(ModelError, match="no such file"):
        features(config, cache)


def test_two_that_ask_at_once_compute_once(config: TrialConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    dataset = open_dataset(config.data, ImageCache(cache))
    built: list[AestheticModel] = []

    def build() -> AestheticModel:
        built.append(new_model(config, dataset, round=0))
        return built[-1]

    def ask(_: int) -> Dataset:
        return frozen_dataset(dataset, config, build, device=CPU, cache=ImageCache(cache))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    for split in ("train", "val", "pool"):
        for other in found[1:]:
            np.testing.assert_array_equal(rows(found[0], split), rows(other, split))
    folders = sorted(path.name for path in cache.glob("features-*"))
    assert len(folders) == 3
    written = {path: path.stat().st_mtime_ns for path in cache.glob("features-*/*.npy")}
    ask(0)
    assert written == {path: path.stat().st_mtime_ns for path in cache.glob("features-*/*.npy")}
    assert len(built) <= 3  # each split was computed by one of the four
