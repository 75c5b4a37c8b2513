"""Evaluation: every image, exact, on any scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from single_epochs import Training, build

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.training.predict import Predictions, evaluate, predict

MakeDataset = Callable[..., Dataset]


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_evaluation_uses_every_image_at_any_batch_size(
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


def test_evaluation_is_repeatable_and_keeps_the_model(quick: TrialConfig, make_dataset: MakeDataset) -> None:
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


@pytest.mark.parametrize("votes", [True, False])
def test_metrics_are_measured_on_the_data_set_s_own_scale(
    votes: bool, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(val=40, scale=(0, 100), votes=votes)
    truth = dataset.val.scores
    noisy = truth + np.random.default_rng(0).normal(0, 15, len(truth))
    shares = np.random.default_rng(1).dirichlet(np.ones(5), len(truth))
    metrics = evaluate(Predictions(dataset.val.ids, truth, noisy, shares, None), dataset.val, dataset.rating_scale)
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
