"""Heads on features: with a frozen backbone, or afterwards."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from elta_tune.config import TrialConfig
from elta_tune.data.batches import epoch_order
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.dataset import Dataset
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import ConfigError, ModelError
from elta_tune.models.checkpoint import save_checkpoint
from elta_tune.records import TrialFolder
from elta_tune.results.measure import measure_checkpoint
from elta_tune.results.sources import checkpoint_of_trial
from elta_tune.training.seeding import stage_generator
from elta_tune.training.self_training import Epoch, self_training_rounds
from elta_tune.training.state import new_model
from elta_tune.trial import NoReporter, run_trial

CPU = torch.device("cpu")
MakeDataset = Callable[..., Dataset]


@pytest.fixture
def frozen() -> TrialConfig:
    """A frozen backbone of random weights, with all of the method that acts on features."""
    return TrialConfig().replace(
        {
            "data.resize": 36,
            "data.crop": 32,
            "model.backbone": "test_resnet",
            "model.pretrained": False,
            "model.freeze": True,
            "optim.lr": 3e-3,
            "mixup.alpha": 0.5,
            "sharpening.threshold": 0.0,
            "training.epochs": 2,
            "training.batch_size": 8,
        }
    )


@pytest.fixture
def retrained(frozen: TrialConfig) -> TrialConfig:
    """Training of the whole, a round of self-training, then the head alone."""
    values = {"model.freeze": False, "self_training.rounds": 1, "self_training.epochs": 1}
    return frozen.replace({**values, "training.retrain_head_epochs": 2})


def train(config: TrialConfig, dataset: Dataset, **options: Any) -> list[Epoch]:
    return list(self_training_rounds(config, dataset, CPU, **options))


@torch.inference_mode()
def features_of(dataset: Dataset, config: TrialConfig, split: str) -> torch.Tensor:
    """What the backbone says of each image alone: (N, D)."""
    model = new_model(config, dataset, round=0).eval()
    images = getattr(dataset, split).images[config.data.crop]
    pixels = torch.from_numpy(images.gather(np.arange(len(images)))).permute(0, 3, 1, 2).float() / 255
    normalised = (pixels - model.mean[:, None, None]) / model.std[:, None, None]
    return torch.cat([model.backbone(one[None]) for one in normalised])


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_a_frozen_training_is_that_of_a_head_on_features(
    head: str, frozen: TrialConfig, make_dataset: MakeDataset
) -> None:
    """Written out: Adam on the head alone, in the training's order, without mixing."""
    config = frozen.replace({"model.head": head, "model.dropout": 0.0, "mixup.pairs": 0})
    dataset = make_dataset()
    *_, last = train(config, dataset)
    model = new_model(config, dataset, round=0)
    features = features_of(dataset, config, "train")
    scores = 1 + 9 * (torch.tensor(dataset.train.scores).float() - 1) / 4
    targets = torch.from_numpy(dataset.train.distributions) if head == "emd" else scores[:, None] / 10
    optimizer = torch.optim.Adam(model.head.parameters(), lr=config.optim.lr)
    model.head.train()
    for epoch in (1, 2):
        for rows in epoch_order(len(features), 8, stage_generator(config.seed, "order", 0, epoch)):
            optimizer.zero_grad()
            model.head.loss(model.head(features[rows]), targets[rows], "batch").backward()
            optimizer.step()
    for name, value in model.head.state_dict().items():
        torch.testing.assert_close(last.weights[f"head.{name}"], value, atol=1e-5, rtol=1e-4)
    assert not [name for name in last.weights if name.startswith("backbone.")]
    with torch.inference_mode():
        said = model.head.eval().scores(model.head(features_of(dataset, config, "val")))
    np.testing.assert_allclose(
        last.checkpoint["best"]["predictions"]["scores"].numpy(), 1 + 4 * (said.numpy() - 1) / 9, atol=1e-3
    )


def test_frozen_training_selects_the_pool_by_the_same_features(frozen: TrialConfig, make_dataset: MakeDataset) -> None:
    config = frozen.replace({"self_training.rounds": 1, "self_training.epochs": 1})
    dataset = make_dataset()
    epochs = train(config, dataset)
    assert [(epoch.round, epoch.epoch) for epoch in epochs] == [(0, 1), (0, 2), (1, 1)]
    selection = epochs[1].selection
    assert selection is not None
    model = new_model(config, dataset, round=0)
    best = next(epoch for epoch in epochs if epoch.step == epochs[1].best.step)
    model.head.load_state_dict({name[5:]: value for name, value in best.weights.items() if name.startswith("head.")})
    with torch.inference_mode():
        shares = model.head.eval()(features_of(dataset, config, "pool")).softmax(dim=1)
    torch.testing.assert_close(selection.raw, shares[selection.rows], atol=1e-4, rtol=1e-3)
    assert epochs[2].training["pseudo_labels"] == len(selection.rows) > 0


@pytest.mark.parametrize("kind", ["frozen", "retrained"])
def test_training_resumes_at_any_epoch_as_if_never_stopped(
    kind: str, frozen: TrialConfig, retrained: TrialConfig, make_dataset: MakeDataset
) -> None:
    config = {"frozen": frozen, "retrained": retrained}[kind]
    dataset = make_dataset()
    unbroken, checkpoints, best_weights = [], [], []
    best: dict[str, torch.Tensor] = {}
    for epoch in self_training_rounds(config, dataset, CPU):
        best = {name: value.clone() for name, value in epoch.weights.items()} if epoch.is_best else best
        unbroken.append((epoch.step, epoch.round, epoch.metrics, epoch.training["loss"]))
        checkpoints.append(deepcopy(epoch.checkpoint))
        best_weights.append(best)
    assert len(unbroken) == config.planned_epochs
    for at in range(len(unbroken)):
        resume = {**checkpoints[at], "best_weights": best_weights[at]}
        rest = [
            (epoch.step, epoch.round, epoch.metrics, epoch.training["loss"])
            for epoch in self_training_rounds(config, dataset, CPU, resume=resume)
        ]
        assert repr(rest) == repr(unbroken[at + 1 :])  # NaN does not equal NaN


def test_retraining_freezes_the_best_backbone_and_keeps_its_head(
    retrained: TrialConfig, make_dataset: MakeDataset
) -> None:
    config = retrained.replace({"evaluation.metric": "mae"})
    weights: dict[int, dict[str, torch.Tensor]] = {}
    places, best_before = [], 0
    for epoch in self_training_rounds(config, make_dataset(), CPU):
        weights[epoch.step] = {name: value.clone() for name, value in epoch.weights.items()}
        places.append((epoch.step, epoch.round, epoch.epoch))
        if epoch.round < 2:
            best_before = epoch.best.step
    assert places == [(1, 0, 1), (2, 0, 2), (3, 1, 1), (4, 2, 1), (5, 2, 2)]
    for step in (4, 5):
        for name, value in weights[best_before].items():
            if name.startswith("backbone."):
                assert torch.equal(weights[step][name], value)
            elif name.endswith("weight"):  # three steps of Adam from the best head, not from a new one
                assert 0 < (weights[4][name] - value).abs().max() <= 3 * config.optim.lr * 1.5


def test_retraining_sees_evaluation_crops_and_no_similarity_loss(
    retrained: TrialConfig, make_dataset: MakeDataset
) -> None:
    """Another size to crop from, or another weight of the similarity loss, would change augmented training."""
    config = retrained.replace({"training.epochs": 1, "self_training.rounds": 0, "optim.backbone_lr_factor": 1e-30})
    dataset = make_dataset()
    weighted = train(config.replace({"simloss.weight": 5.0}), dataset)
    plain = train(config, dataset)
    assert weighted[0].training["loss"] != plain[0].training["loss"]
    large = dataset.train.images[config.data.resize]
    other = replace(dataset.train, images={**dataset.train.images, 36: large.subset(np.arange(len(large))[::-1])})
    assert train(config, replace(dataset, train=other))[0].training["loss"] != plain[0].training["loss"]
    assert weighted[1].training["loss"] == pytest.approx(plain[1].training["loss"], rel=1e-3)


def test_both_head_only_trainings_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="retrain_head_epochs"):
        TrialConfig().replace({"model.freeze": True, "training.retrain_head_epochs": 1})


def test_frozen_trial_saves_only_its_head_but_exports_whole(
    frozen: TrialConfig, data_root: Path, cache: Path, tmp_path: Path, weights_file: Path
) -> None:
    config = frozen.replace({"data.root": str(data_root), "model.weights": str(weights_file)})
    folder = TrialFolder(tmp_path / "trial")
    result = run_trial(config, folder, NoReporter(), cache=ImageCache(cache))
    assert {name.partition(".")[0] for name in load_file(folder.best_file)} == {"head", "backbone_digest"}
    save_checkpoint(checkpoint_of_trial(folder, result, None), tmp_path / "best.ckpt", "ckpt")
    weights_file.write_bytes(b"the exported file needs no other")
    measured = measure_checkpoint(tmp_path / "best.ckpt", "val", ImageCache(cache), "cpu")
    assert measured["metrics"] == pytest.approx(result.metrics, abs=1e-5)


def test_a_frozen_trial_does_not_take_other_weights_for_its_own(
    frozen: TrialConfig, data_root: Path, cache: Path, tmp_path: Path, weights_file: Path
) -> None:
    config = frozen.replace({"data.root": str(data_root), "model.weights": str(weights_file)})
    folder = TrialFolder(tmp_path / "trial")
    result = run_trial(config, folder, NoReporter(), cache=ImageCache(cache))
    state = load_file(weights_file)
    save_file({**state, "fc.bias": torch.zeros(3)}, weights_file)  # a classifier that is not used
    assert checkpoint_of_trial(folder, result, None).state_dict
    save_file({name: value + 1e-3 * value.is_floating_point() for name, value in state.items()}, weights_file)
    with pytest.raises(ModelError, match="not those that the head was trained on"):
        checkpoint_of_trial(folder, result, None)


def test_a_retrained_trial_is_exported_as_it_predicted(
    retrained: TrialConfig, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    config = retrained.replace({"data.root": str(data_root)})
    folder = TrialFolder(tmp_path / "trial")
    result = run_trial(config, folder, NoReporter(), cache=ImageCache(cache))
    assert (result.state, len(folder.epochs())) == ("complete", config.planned_epochs)
    save_checkpoint(checkpoint_of_trial(folder, result, None), tmp_path / "best.ckpt", "ckpt")
    measured = measure_checkpoint(tmp_path / "best.ckpt", "val", ImageCache(cache), "cpu")
    assert measured["metrics"] == pytest.approx(result.metrics, abs=1e-5)
    assert open_dataset(config.data, ImageCache(cache)).val.file.name == "val.csv"
