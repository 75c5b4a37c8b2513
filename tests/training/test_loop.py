"""One epoch of training, one evaluation: schedule, optimizer, what is dropped, what is recorded, on any scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.errors import DivergedError
from elta_tune.training.loop import (
    Predictions,
    Samples,
    build_optimizer,
    evaluate,
    from_method_scale,
    predict,
    to_method_scale,
    train_epoch,
)
from elta_tune.training.model import AestheticModel, build_model

MakeDataset = Callable[..., Dataset]
CPU = torch.device("cpu")


def build(config: TrialConfig, dataset: Dataset) -> AestheticModel:
    bins = None if dataset.bins is None else torch.from_numpy(to_method_scale(dataset.bins, dataset.scale)).float()
    return build_model(config.model, bins=bins, size=config.data.crop, seed=0)


def labels(config: TrialConfig, dataset: Dataset) -> Samples:
    scores = torch.from_numpy(to_method_scale(dataset.train.scores, dataset.scale)).float()
    targets = scores[:, None] / 10 if config.model.head == "mse" else torch.from_numpy(dataset.train.distributions)
    return Samples(dataset.train.images[config.data.resize], targets, scores)


class Training:
    """Epochs of a model, with what its optimizer saw at each step."""

    def __init__(self, config: TrialConfig, dataset: Dataset, *, scale: float | None = None) -> None:
        self.config, self.samples = config, labels(config, dataset)
        self.model = build(config, dataset)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        self.rates: list[list[float]] = []
        self.norms: list[float] = []
        self.optimizer.register_step_pre_hook(lambda *_: self._look())

    def _look(self) -> None:
        self.rates.append([group["lr"] for group in self.optimizer.param_groups])
        gradients = [p.grad.double().numpy().ravel() for p in self.model.parameters() if p.grad is not None]
        self.norms.append(math.sqrt(sum(float(gradient @ gradient) for gradient in gradients)))

    def epoch(self, epoch: int = 1, *, epochs: int = 1, round: int = 0) -> dict[str, float]:
        arguments: dict[str, Any] = {"round": round, "epoch": epoch, "epochs": epochs}
        return train_epoch(self.model, self.optimizer, self.scaler, self.samples, self.config, **arguments)


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_rises_and_falls_by_the_formula(
    schedule: str, warmup: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    values = {"optim.schedule": schedule, "optim.warmup_epochs": warmup, "optim.lr": 0.02}
    config = quick.replace({**values, "optim.backbone_lr_factor": 0.25})
    training = Training(config, make_dataset(train=24))  # 3 steps an epoch
    recorded = [training.epoch(epoch, epochs=4)["lr"] for epoch in (1, 2, 3, 4)]
    expected = []
    for step in range(1, 13):
        done = step / 3
        if done < warmup:
            expected.append(0.02 * done / warmup)
        elif schedule == "constant":
            expected.append(0.02)
        else:
            expected.append(0.02 * (1 + math.cos(math.pi * (done - warmup) / (4 - warmup))) / 2)
    backbone, head = np.array(training.rates).T
    np.testing.assert_allclose(head, expected, atol=1e-12)
    np.testing.assert_allclose(backbone, 0.25 * np.array(expected), atol=1e-12)
    np.testing.assert_allclose(recorded, np.array(expected).reshape(4, 3).mean(axis=1), atol=1e-12)


def reference_step(name: str, lr: float, momentum: float, decay: float, weight: Any, gradients: list[Any]) -> Any:
    """Two steps of the optimizers, from their papers."""
    first, second, velocity = np.zeros_like(weight), np.zeros_like(weight), None
    for t, gradient in enumerate(gradients, start=1):
        if name == "adamw":
            weight = weight - lr * decay * weight
        slope = gradient if name == "adamw" else gradient + decay * weight
        if name == "sgd":
            velocity = slope if velocity is None else momentum * velocity + slope
            weight = weight - lr * (slope + momentum * velocity if momentum else slope)
            continue
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        weight = weight - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return weight


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("name", "momentum"), [("adam", 0.9), ("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)])
def test_optimizers_step_as_in_their_papers(
    name: str, momentum: float, decay: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    values = {"optim.name": name, "optim.momentum": momentum, "optim.weight_decay": decay, "optim.lr": 0.01}
    model = build(quick.replace(values), make_dataset())
    optimizer = build_optimizer(model, quick.replace({**values, "optim.backbone_lr_factor": 0.5}).optim)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"]
    random = np.random.default_rng(0)
    for parameter, lr in ((model.backbone.conv1[0].weight, 0.005), (model.head[2].bias, 0.01)):
        start = parameter.detach().double().numpy().copy()
        gradients = [random.normal(size=parameter.shape) for _ in range(2)]
        for gradient in gradients:
            optimizer.zero_grad()
            parameter.grad = torch.from_numpy(gradient).float()
            optimizer.step()
        expected = reference_step(name, lr, momentum, decay, start, gradients)
        np.testing.assert_allclose(parameter.detach(), expected, atol=1e-6)


def test_training_drops_the_last_incomplete_batch(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    training = Training(quick.replace({"training.batch_size": 10}), make_dataset(train=29))
    seen: list[int] = []
    training.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    record = training.epoch()
    assert seen == [10, 10]
    assert record["images_per_second"] == pytest.approx(20 / record["seconds"])


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_evaluation_drops_nothing_and_its_batch_size_changes_nothing(
    head: str, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(val=13)
    training = Training(quick.replace({"model.head": head}), dataset)
    training.epoch()
    found = [
        predict(training.model, dataset.val, quick.replace({"model.head": head, "evaluation.batch_size": size}), (1, 5))
        for size in (1, 4, 13, 500)
    ]
    assert all(list(predictions.ids) == list(dataset.val.ids) for predictions in found)
    assert found[0].scores.std() > 0
    for predictions in found[1:]:
        np.testing.assert_allclose(predictions.scores, found[0].scores, atol=1e-5)


def test_evaluation_is_repeatable_and_leaves_the_model_alone(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    training = Training(quick.replace({"model.head": "mse"}), dataset)  # it has a dropout
    training.epoch()
    state = {name: value.clone() for name, value in training.model.state_dict().items()}
    first, second = (predict(training.model, dataset.val, training.config, dataset.scale) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    assert all(torch.equal(state[name], value) for name, value in training.model.state_dict().items())


@pytest.mark.parametrize(("low", "high", "bins"), [(1, 10, 10), (0, 1, 2), (0, 100, 21), (-3, 3, 7)])
def test_distributions_score_on_the_data_set_s_own_scale(
    low: float, high: float, bins: int, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(scale=(low, high), bins=bins)
    predictions = predict(build(quick, dataset), dataset.val, quick, dataset.scale)
    assert predictions.logits is not None
    exponentials = np.exp(predictions.logits.double().numpy())
    shares = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.distributions, shares, atol=1e-6)
    np.testing.assert_allclose(predictions.scores, shares @ np.linspace(low, high, bins), atol=1e-5 * (high - low))


@pytest.mark.parametrize(("low", "high"), [(1, 10), (0, 1), (0, 100)])
def test_a_score_head_scores_on_the_data_set_s_own_scale(
    low: float, high: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(scale=(low, high), votes=False)
    config = quick.replace({"model.head": "mse"})
    model = build(config, dataset).eval()
    predictions = predict(model, dataset.val, config, dataset.scale)
    pixels = (
        torch.from_numpy(dataset.val.images[32].gather(np.arange(len(dataset.val.images[32]))).astype(np.float32)) / 255
    )
    with torch.no_grad():
        _, logits = model((pixels.permute(0, 3, 1, 2) - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1))
    tenths = 10 / (1 + np.exp(-logits.double().squeeze(1).numpy()))
    np.testing.assert_allclose(predictions.scores, low + (tenths - 1) / 9 * (high - low), atol=1e-5 * (high - low))
    assert predictions.distributions is None and predictions.logits is None


def test_scales_map_onto_one_to_ten_and_back() -> None:
    scores = np.array([0.0, 25.0, 100.0])
    np.testing.assert_allclose(to_method_scale(scores, (0, 100)), [1, 3.25, 10])
    np.testing.assert_allclose(from_method_scale(to_method_scale(scores, (-20, 130)), (-20, 130)), scores, atol=1e-12)


@pytest.mark.parametrize("votes", [True, False])
def test_metrics_are_measured_on_the_data_set_s_own_scale(
    votes: bool, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(val=40, scale=(0, 100), votes=votes)
    truth = dataset.val.scores
    noisy = truth + np.random.default_rng(0).normal(0, 15, len(truth))
    shares = np.random.default_rng(1).dirichlet(np.ones(5), len(truth))
    metrics = evaluate(Predictions(dataset.val.ids, truth, noisy, shares, None), dataset.val, dataset)
    low, high = np.percentile(dataset.train.scores, [20, 80])
    expected = {
        "srcc": stats.spearmanr(noisy, truth).statistic,
        "plcc": stats.pearsonr(noisy, truth).statistic,
        "accuracy": np.mean((noisy > 50) == (truth > 50)),
        "mae": np.abs(noisy - truth).mean(),
        "mae_low": np.abs(noisy - truth)[truth <= low].mean(),
        "bias_high": (noisy - truth)[truth >= high].mean(),
        "n_mid": ((truth > low) & (truth < high)).sum(),
    }
    if votes:
        assert dataset.val.distributions is not None
        gaps = np.abs(np.cumsum(shares, axis=1) - np.cumsum(dataset.val.distributions.astype(float), axis=1))
        expected["emd_r1"] = gaps.mean()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert ("emd_r2" in metrics) == votes


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


# Half precision is tried on a transformer: on some CPUs oneDNN's convolutions give NaN for gradients of 1×1 maps.
HALF = {"model.backbone": "test_vit"}


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


def test_a_step_that_overflows_float16_is_skipped_and_not_averaged(
    quick: TrialConfig, make_dataset: MakeDataset
) -> None:
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


def test_evaluation_switches_tf32_off_and_on_again(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    model = build(quick, dataset)
    seen: list[bool] = []
    model.backbone.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    predict(model, dataset.val, quick, dataset.scale)
    assert seen == [False] * 3
    assert torch.backends.cudnn.allow_tf32 == before


def test_images_are_channels_last_and_normalised(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    dataset = make_dataset()
    training = Training(quick, dataset)
    inputs: list[torch.Tensor] = []
    training.model.backbone.register_forward_pre_hook(lambda _, images: inputs.append(images[0]))
    training.epoch()
    predict(training.model, dataset.val, quick, dataset.scale)
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in inputs)
    first = dataset.val.images[32].gather(np.array([0]))[0].astype(float) / 255
    mean, std = (value.double().numpy() for value in (training.model.mean, training.model.std))
    expected = (first - mean) / std
    np.testing.assert_allclose(inputs[3][0].permute(1, 2, 0), expected, atol=1e-5)
