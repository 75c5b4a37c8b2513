"""One epoch: what is dropped, what is recorded, in which precision."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from single_epochs import Training

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.errors import DivergedError
from elta_tune.training.predict import predict

MakeDataset = Callable[..., Dataset]

# Half precision is tried on a transformer: on some CPUs oneDNN's convolutions give NaN for gradients of 1×1 maps.
HALF = {"model.backbone": "test_vit"}


def test_training_drops_the_last_incomplete_batch(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    training = Training(quick.replace({"training.batch_size": 10}), make_dataset(train=29))
    seen: list[int] = []
    training.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    record = training.epoch()
    assert seen == [10, 10]
    assert record["images_per_second"] == pytest.approx(20 / record["seconds"])


def test_a_loss_that_is_not_finite_names_round_epoch_and_step(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    training = Training(quick.replace({"optim.name": "sgd", "optim.lr": 1e30}), make_dataset())
    with pytest.raises(DivergedError, match=r"the loss became nan in round 2, epoch 3, step 2"):
        training.epoch(3, epochs=5, round=2)
    with torch.no_grad():
        training.model.head[2].bias[0] = torch.inf
    with pytest.raises(DivergedError, match=r"round 0, epoch 1, step 1"):
        training.epoch()


def test_an_epoch_records_means_over_its_steps(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    training = Training(quick.replace({"optim.name": "sgd", "optim.lr": 1e-3, "simloss.weight": 0.7}), make_dataset())
    record = training.epoch()
    assert len(training.norms) == 3
    assert record["gradient_norm"] == pytest.approx(np.mean(training.norms), rel=1e-5)
    assert record["loss"] == pytest.approx(record["loss_task"] + 0.7 * record["loss_similarity"], rel=1e-5)
    assert record["seconds"] > 0
    assert 50 < record["peak_memory_mb"] < 100_000
    assert set(record) == {"loss", "loss_task", "loss_similarity", "gradient_norm", "lr"} | {
        "seconds",
        "images_per_second",
        "peak_memory_mb",
    }


@pytest.mark.parametrize(("precision", "scale"), [("bfloat16", None), ("float16", 1024.0)])
def test_half_precision_trains_and_evaluation_stays_exact(
    precision: str, scale: float | None, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset()
    exact = Training(quick.replace({"training.precision": "float32", **HALF}), dataset)
    rounded = Training(quick.replace({"training.precision": precision, **HALF}), dataset, scale=scale)
    kinds: list[torch.dtype] = []
    rounded.model.backbone.patch_embed.proj.register_forward_hook(lambda *found: kinds.append(found[2].dtype))
    records = [training.epoch() for training in (exact, rounded)]
    predict(rounded.model, dataset.val, rounded.config, dataset.scale)
    assert kinds == [getattr(torch, precision)] * 3 + [torch.float32] * 3
    assert records[1]["loss"] == pytest.approx(records[0]["loss"], rel=0.05)
    assert records[1]["gradient_norm"] == pytest.approx(records[0]["gradient_norm"], rel=0.2)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.model.parameters())


def test_step_that_overflows_float16_is_skipped_in_the_mean(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    """The scaler starts too high on purpose, and halves: the first steps are skipped, the later ones count."""
    config = quick.replace({"training.precision": "float16", **HALF})
    training = Training(config, make_dataset(train=8 * 12), scale=2.0**24)
    before = training.model.head[2].weight.detach().clone()
    record = training.epoch()
    assert 0 < len(training.norms) < 12
    assert record["gradient_norm"] == pytest.approx(np.mean(training.norms), rel=1e-3)
    assert math.isfinite(record["loss"])
    assert not torch.equal(before, training.model.head[2].weight)
    hopeless = Training(config, make_dataset(), scale=2.0**120)
    assert math.isnan(hopeless.epoch()["gradient_norm"])
    assert hopeless.norms == []
