"""Rounds of training on labels and pseudo-labels: docs/method.md §4 by hand, and resuming after a stop at any epoch."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.errors import ConfigError, DataError, ModelError
from elta_tune.method.scores import method_bins
from elta_tune.training import self_training
from elta_tune.training.model import build_model
from elta_tune.training.self_training import Epoch, check_fits, self_training_rounds

MakeDataset = Callable[..., Dataset]
CPU = torch.device("cpu")
FIRST_IS_BEST = {"evaluation.metric": "bmae"}
"""Twelve images fill no bin of it: the metric is always NaN, and NaN never beats the first epoch's value."""


def epochs_of(config: TrialConfig, dataset: Dataset, **options: Any) -> Iterator[tuple[Epoch, dict[str, Tensor]]]:
    """The epochs, with copies of their weights."""
    for epoch in self_training_rounds(config, dataset, CPU, **options):
        yield epoch, {name: value.clone() for name, value in epoch.weights.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Rounds:
    """Watches what each epoch is given to train on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.samples: list[Any] = []
        self.weights: list[dict[str, Tensor]] = []
        self.optimizers: list[int] = []
        real = self_training.train_epoch

        def watched(
            model: Any, optimizer: Any, scaler: Any, samples: Any, config: Any, **place: Any
        ) -> dict[str, float]:
            self.samples.append(samples)
            self.weights.append({name: value.clone() for name, value in model.state_dict().items()})
            self.optimizers.append(len(optimizer.state))
            return real(model, optimizer, scaler, samples, config, **place)

        monkeypatch.setattr(self_training, "train_epoch", watched)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    return Rounds(monkeypatch)


def test_steps_count_on_and_the_best_epoch_of_all_rounds_is_kept(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    config = quick.replace({"training.epochs": 3, "self_training.rounds": 2, "evaluation.metric": "mae"})
    config = config.replace({"evaluation.direction": "minimize"})
    found = [epoch for epoch, _ in epochs_of(config, make_dataset())]
    assert [(epoch.step, epoch.round, epoch.epoch) for epoch in found] == [
        (1, 0, 1),
        (2, 0, 2),
        (3, 0, 3),
        (4, 1, 1),
        (5, 1, 2),
        (6, 2, 1),
        (7, 2, 2),
    ]
    values = [epoch.metrics["mae"] for epoch in found]
    for number, epoch in enumerate(found, start=1):
        best = int(np.argmin(values[:number]))
        assert (epoch.best.step, epoch.best.value) == (best + 1, values[best])
        assert epoch.best.metrics == found[best].metrics
        assert epoch.is_best == (best + 1 == number)
    assert len({epoch.best.step for epoch in found}) > 1
    assert [epoch.selection is not None for epoch in found] == [False, False, True, False, True, False, False]
    pseudo_labels = [epoch.training["pseudo_labels"] for epoch in found]
    assert pseudo_labels[:3] == [0, 0, 0]
    assert pseudo_labels[3:] == [len(found[2].selection.rows)] * 2 + [len(found[4].selection.rows)] * 2


@pytest.mark.parametrize(("metric", "direction", "best"), [("mae", "minimize", min), ("mae", "maximize", max)])
def test_the_recipe_s_metric_and_direction_choose_the_best(
    metric: str, direction: str, best: Callable[..., float], quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    values = {"evaluation.metric": metric, "evaluation.direction": direction, "training.epochs": 4}
    found = [epoch for epoch, _ in epochs_of(quick.replace(values), make_dataset())]
    assert found[-1].best.value == best(epoch.metrics[metric] for epoch in found)


def by_hand(logits: Any, temperature: float) -> tuple[list[Any], list[Any], list[float]]:
    """Raw and sharpened distributions and scores on 1…10 of a pool: docs/method.md §4, an image at a time."""
    raw = [np.exp(row) / np.exp(row).sum() for row in logits]
    scores = [float(share @ np.linspace(1, 10, 5)) for share in raw]
    stretched = [
        row * np.exp(temperature * abs(np.mean(scores) - score)) for row, score in zip(logits, scores, strict=True)
    ]
    sharpened = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in stretched]
    return raw, sharpened, scores


@pytest.mark.parametrize("temperature", [0.0, 1.25, 40.0])
def test_the_best_checkpoint_so_far_selects_by_the_method(
    temperature: float, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    dataset = make_dataset(pool=30, scale=(0, 100))
    config = quick.replace({"sharpening.temperature": temperature, **FIRST_IS_BEST})
    best = next(epochs_of(config, dataset))[1]
    model = build_model(quick.model, bins=method_bins(dataset.bins, dataset.scale), size=32, seed=1).eval()
    model.load_state_dict(best)
    assert dataset.pool is not None
    pixels = (
        torch.from_numpy(dataset.pool.images[32].gather(np.arange(len(dataset.pool.images[32]))).astype(np.float32))
        / 255
    )
    images = (pixels.permute(0, 3, 1, 2) - model.mean.view(3, 1, 1)) / model.std.view(3, 1, 1)
    with torch.no_grad():
        raw, sharpened, scores = by_hand(model(images)[1].double().numpy(), temperature)
    confidences = sorted(max(row) for row in sharpened)
    threshold = (confidences[14] + confidences[15]) / 2
    keep = [max(row) > threshold for row in sharpened]

    values = {"self_training.rounds": 1, "sharpening.threshold": threshold}
    found = [epoch for epoch, _ in itertools.islice(epochs_of(config.replace(values), dataset), 2)]
    selection = found[1].selection
    assert found[1].best.step == 1
    assert selection is not None
    assert (selection.round, selection.pool_size, len(selection.ids)) == (1, 30, sum(keep))
    assert list(selection.ids) == list(dataset.pool.ids[keep])
    assert selection.rows.tolist() == np.flatnonzero(keep).tolist()
    np.testing.assert_allclose(selection.scores, (np.array(scores)[keep] - 1) / 9 * 100, atol=1e-3)
    np.testing.assert_allclose(selection.raw, np.array(raw)[keep], atol=1e-5)
    np.testing.assert_allclose(selection.sharpened, np.array(sharpened)[keep], atol=1e-3)


@pytest.mark.parametrize("target", ["raw", "sharpened"])
def test_a_round_trains_on_labels_and_pseudo_labels(
    target: str, quick: TrialConfig, make_dataset: MakeDataset, rounds: Rounds
) -> None:
    dataset = make_dataset()
    values = {"self_training.rounds": 1, "sharpening.target": target, "sharpening.temperature": 3.0}
    found = [epoch for epoch, _ in epochs_of(quick.replace(values), dataset)]
    selection, labels, both = found[1].selection, rounds.samples[0], rounds.samples[2]
    assert selection is not None and dataset.pool is not None and dataset.train.distributions is not None
    count = len(selection.rows)
    assert count > 0
    np.testing.assert_array_equal(labels.targets, dataset.train.distributions)
    np.testing.assert_allclose(labels.scores, 1 + 9 * (dataset.train.scores - 1) / 4, rtol=1e-6)
    np.testing.assert_array_equal(both.targets[:-count], labels.targets)
    np.testing.assert_array_equal(both.targets[-count:], selection.raw if target == "raw" else selection.sharpened)
    np.testing.assert_allclose(
        both.scores[-count:], both.targets[-count:].double().numpy() @ np.linspace(1, 10, 5), rtol=1e-5
    )
    everything = both.images.gather(np.arange(24 + count))
    np.testing.assert_array_equal(everything[:24], dataset.train.images[36].gather(np.arange(24)))
    np.testing.assert_array_equal(everything[24:], dataset.pool.images[36].gather(selection.rows.numpy()))


@pytest.mark.parametrize("init", ["continue", "restart"])
def test_a_round_starts_from_the_best_checkpoint_or_afresh(
    init: str, quick: TrialConfig, make_dataset: MakeDataset, rounds: Rounds
) -> None:
    values = {"self_training.rounds": 2, "self_training.epochs": 1, "self_training.init": init, **FIRST_IS_BEST}
    found = list(epochs_of(quick.replace(values), make_dataset()))
    best = found[0][1]
    assert [count > 0 for count in rounds.optimizers] == [False, True, False, False]  # each round has a new optimizer
    for start in rounds.weights[2:]:
        assert same(start, best) == (init == "continue")
    if init == "restart":
        assert not same(rounds.weights[2], rounds.weights[0])
        assert not same(rounds.weights[2], rounds.weights[3])
        assert torch.equal(rounds.weights[2]["backbone.bn1.running_mean"], torch.zeros(32))


def test_where_nothing_is_selected_the_rounds_end(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    values = {"self_training.rounds": 3, "sharpening.threshold": 0.999, "sharpening.temperature": 0.0}
    found = [epoch for epoch, _ in epochs_of(quick.replace(values), make_dataset())]
    assert [epoch.step for epoch in found] == [1, 2]
    selection = found[1].selection
    assert selection is not None
    assert (selection.round, len(selection.ids), selection.raw.shape) == (1, 0, (0, 5))


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_more_rounds_leave_round_zero_as_it_was(head: str, quick: TrialConfig, make_dataset: MakeDataset) -> None:
    config = quick.replace({"model.head": head})
    alone = list(epochs_of(config, make_dataset(pool=0)))
    if head == "emd":
        config = config.replace({"self_training.rounds": 2})
    followed = list(epochs_of(config, make_dataset()))
    for (left, weights), (right, other) in zip(alone, followed, strict=False):
        assert left.metrics == right.metrics
        assert same(weights, other)


def test_the_same_seed_is_the_same_training_and_another_is_not(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    config = quick.replace({"training.epochs": 1})
    weights = [next(epochs_of(config.replace({"seed": seed}), make_dataset()))[1] for seed in (0, 0, 1)]
    torch.manual_seed(99)  # what others draw changes nothing
    weights.append(next(epochs_of(config, make_dataset()))[1])
    assert same(weights[0], weights[1]) and same(weights[0], weights[3])
    assert not same(weights[0], weights[2])


def test_pairs_zero_switches_mixing_off(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    def trained(**values: Any) -> dict[str, Tensor]:
        return next(
            epochs_of(quick.replace({name.replace("__", "."): value for name, value in values.items()}), make_dataset())
        )[1]

    plain = trained(mixup__pairs=0)
    assert same(plain, trained(mixup__pairs=0, mixup__tau_1=3.0, mixup__tau_2=9.0, mixup__alpha=0.5))
    assert not same(plain, trained(mixup__pairs=1))


class Stop:
    """A checkpoint as on disk, with the best weights next to it."""

    def __init__(self, epoch: Epoch, best_weights: dict[str, Tensor]) -> None:
        self.step = epoch.step
        self._file = io.BytesIO()
        torch.save({**epoch.checkpoint, "best_weights": best_weights}, self._file)

    def load(self) -> dict[str, Any]:
        self._file.seek(0)
        return torch.load(self._file, weights_only=True)


@pytest.mark.parametrize(
    "values",
    [
        {"optim.name": "adam", "optim.schedule": "cosine", "optim.warmup_epochs": 1.5, "mixup.alpha": 0.5},
        {"optim.name": "sgd", "optim.lr": 0.05, "self_training.init": "restart", "evaluation.metric": "mae"},
        {"optim.name": "adamw", "model.backbone": "test_vit_relpos", "optim.weight_decay": 0.1},
        {"optim.name": "adamw", "model.backbone": "fasternet_t1", "self_training.epochs": 1, "training.epochs": 1},
        {"optim.name": "adam", "model.head": "mse", "self_training.rounds": 0},
        {"training.precision": "float16", "model.backbone": "test_vit", "self_training.rounds": 0},
        {
            "training.precision": "bfloat16",
            "model.backbone": "test_vit",
            "sharpening.target": "sharpened",
            "self_training.epochs": 1,
            **FIRST_IS_BEST,
        },
    ],
    ids=lambda values: "-".join(str(value) for value in values.values()),
)
def test_a_stop_at_any_epoch_changes_no_bit(
    values: dict[str, Any], quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    """Optimizers, schedules, heads, backbones with dropout and drop path, half precision, ends of rounds."""
    config, dataset = quick.replace({"self_training.rounds": 2, "training.batch_size": 12, **values}), make_dataset()
    unbroken, stops, best = [], [], {}
    for epoch, weights in epochs_of(config, dataset):
        best = weights if epoch.is_best else best
        stops.append(Stop(epoch, best))
        unbroken.append((epoch, weights))
    assert len(unbroken) == config.planned_epochs
    for stop in stops:
        rest = list(epochs_of(config, dataset, resume=stop.load()))
        assert len(rest) == len(unbroken) - stop.step
        for (epoch, weights), (expected, expected_weights) in zip(rest, unbroken[stop.step :], strict=True):
            assert (epoch.step, epoch.round, epoch.epoch) == (expected.step, expected.round, expected.epoch)
            np.testing.assert_equal(epoch.metrics, expected.metrics)
            assert epoch.best.step == expected.best.step
            scores, expected_scores = (each.checkpoint["best"]["predictions"]["scores"] for each in (epoch, expected))
            assert torch.equal(scores, expected_scores)
            timeless = {"loss", "loss_task", "loss_similarity", "gradient_norm", "lr", "pseudo_labels"}
            assert {name: epoch.training[name] for name in timeless} == {
                name: expected.training[name] for name in timeless
            }
            assert epoch.checkpoint["scaler"] == expected.checkpoint["scaler"]
            assert same(weights, expected_weights)


@pytest.mark.parametrize(
    ("values", "without", "message"),
    [
        ({"training.batch_size": 25}, {}, r"training\.batch_size: 25 is more than the 24 images of train\.csv"),
        ({"self_training.rounds": 1}, {"pool": 0}, r"self_training\.rounds: there is no pool"),
        (
            {"evaluation.metric": "emd_r2"},
            {"is_spread": True},
            r"evaluation\.metric: emd_r2 is not measured on val\.csv",
        ),
        ({"model.head": "emd"}, {"votes": False}, r"model\.head: emd needs ratings with a distribution"),
        ({"model.backbone": "test_vit", "data.crop": 15}, {}, r"model\.backbone: test_vit can't .*15×15"),
    ],
)
def test_recipe_that_cannot_train_is_refused_at_the_start(
    values: dict[str, Any], without: dict[str, Any], message: str, quick: TrialConfig, make_dataset: MakeDataset
) -> None:
    with pytest.raises((ConfigError, DataError, ModelError), match=message):
        check_fits(quick.replace(values), make_dataset(**without))


def test_a_training_that_nobody_checked_refuses_before_it_trains(
    quick: TrialConfig, make_dataset: MakeDataset, rounds: Rounds
) -> None:
    with pytest.raises(DataError):
        list(self_training_rounds(quick.replace({"self_training.rounds": 1}), make_dataset(pool=0), CPU))
    assert rounds.samples == []


def test_valid_data_pass_the_check(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    check_fits(quick.replace({"self_training.rounds": 2, "training.batch_size": 24}), make_dataset())
    check_fits(quick.replace({"model.head": "mse"}), make_dataset(votes=False, pool=0))


def test_test_labels_never_enter(quick: TrialConfig, make_dataset: MakeDataset) -> None:
    """A study never sees the test split: a data set without one trains the same."""
    dataset = make_dataset()
    test = replace(dataset.val, name="test", file=Path("test.csv"), scores=dataset.val.scores[::-1].copy())
    left, right = (next(epochs_of(quick, given))[1] for given in (dataset, replace(dataset, test=test)))
    assert same(left, right)
