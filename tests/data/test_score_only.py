"""Data with scores only train either head on their own scale, from the rating file to the exported weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import DataError
from elta_tune.method.scores import from_method_scale, to_method_scale
from elta_tune.models.checkpoint import load_checkpoint, save_checkpoint
from elta_tune.records import TrialFolder
from elta_tune.results.evaluate import evaluate_model, evaluate_predictions, predictions_data, table_data
from elta_tune.results.measure import measure_checkpoint
from elta_tune.results.predict import best_first, list_images, predict_images
from elta_tune.results.sources import checkpoint_of_trial
from elta_tune.training.self_training import _samples, check_fits
from elta_tune.trial import NoReporter, run_trial


def write_scores(data_root: Path, root: Path) -> None:
    """The images of `data_root` with a MOS on 0…100 in place of their votes on 1…5."""
    root.mkdir()
    (root / "images").symlink_to(data_root / "images")
    for split in ("train", "val", "test"):
        with (data_root / f"{split}.csv").open(newline="") as file:
            rows = [(row[0], [int(cell) for cell in row[1:]]) for row in list(csv.reader(file))[1:]]
        mos = [(name, (sum(k * n for k, n in enumerate(votes, 1)) / sum(votes) - 1) * 25) for name, votes in rows]
        (root / f"{split}.csv").write_text("name,MOS\n" + "".join(f"{name},{score:.4f}\n" for name, score in mos))
    (root / "pool.csv").write_text((data_root / "pool.csv").read_text())


@pytest.fixture
def scores(data_root: Path, tmp_path: Path, recipe: TrialConfig) -> TrialConfig:
    """The tiny recipe on scores."""
    write_scores(data_root, tmp_path / "root")
    fields = {"data.root": str(tmp_path / "root"), "data.scale": [0, 100], "training.epochs": 4, "optim.lr": 1e-2}
    return recipe.replace(fields)


def trained(config: TrialConfig, folder: Path, cache: Path) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """A trial's result and its predictions."""
    result = run_trial(config, TrialFolder(folder), NoReporter(), cache=ImageCache(cache))
    with (folder / "predictions.csv").open(newline="") as file:
        return result, list(csv.DictReader(file))


@pytest.mark.parametrize(
    "fields",
    [
        {"model.head": "mse", "model.dropout": 0.0},
        {"data.spread": 12.5, "data.bins": 9},
        {"data.spread": 12.5, "self_training.rounds": 1},
    ],
    ids=["mse", "emd, spread", "emd, spread, self-training"],
)
def test_trial_learns_scores_and_its_weights_predict_them(
    scores: TrialConfig, tmp_path: Path, cache: Path, fields: dict[str, Any]
) -> None:
    config = scores.replace(fields)
    result, predictions = trained(config, tmp_path / "trial", cache)
    assert result.state == "complete"
    assert result.metrics["srcc"] > 0.5  # brightness is all there is to learn
    with (tmp_path / "root" / "val.csv").open(newline="") as file:
        truth = {row["name"]: float(row["MOS"]) for row in csv.DictReader(file)}
    assert [row["image_id"] for row in predictions] == list(truth)
    predicted = np.array([float(row["score"]) for row in predictions])
    mae = np.mean([abs(score - truth[row["image_id"]]) for score, row in zip(predicted, predictions, strict=True)])
    assert result.metrics["mae"] == pytest.approx(mae, rel=1e-4)
    assert result.metrics["mae"] < 50  # on 0…100
    assert "emd_r2" not in result.metrics  # the data have no distributions
    assert result.model is not None
    assert tuple(result.model.scale) == (0, 100)

    checkpoint = checkpoint_of_trial(TrialFolder(tmp_path / "trial"), result, None)
    save_checkpoint(checkpoint, tmp_path / "best.ckpt", "ckpt")
    measured = measure_checkpoint(tmp_path / "best.ckpt", "val", ImageCache(cache), "cpu")
    np.testing.assert_allclose(measured["scores"], predicted, atol=1e-3)
    assert measured["data"]["val"]["split"] == "val"
    assert measured["data"]["val"]["origin"] == "val.csv"


def test_a_score_is_mapped_to_tenths_and_back(scores: TrialConfig, cache: Path) -> None:
    config = scores.replace({"model.head": "mse"})
    dataset = open_dataset(config.data, ImageCache(cache))
    samples = _samples(config, dataset, None)
    mos = dataset.train.scores
    expected = [(1 + 9 * score / 100) / 10 for score in mos]  # 0…100 → 1…10 → .1…1
    np.testing.assert_allclose(samples.targets[:, 0].numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(from_method_scale(to_method_scale(mos, (0, 100)), (0, 100)), mos)


def test_distribution_head_on_scores_names_both_fixes(scores: TrialConfig, cache: Path) -> None:
    with pytest.raises(DataError, match="these have scores only") as error:
        check_fits(scores, open_dataset(scores.data, ImageCache(cache)))
    assert "model.head=mse" in str(error.value.hint)
    assert "data.spread" in str(error.value.hint)


def test_a_model_of_dmos_is_measured_from_its_good_end(
    scores: TrialConfig, tmp_path: Path, cache: Path, data_root: Path
) -> None:
    """A low DMOS is good: predictions stay on its scale, and tails and accuracy are mirrored."""
    root = tmp_path / "root"
    for split in ("train", "val", "test"):
        rows = list(csv.reader((root / f"{split}.csv").read_text().splitlines()))[1:]
        lines = [f"{name},{100 - float(score):.4f}" for name, score in rows]
        (root / f"{split}.csv").write_text("\n".join(["name,dmos", *lines]) + "\n")
    config = scores.replace({"model.head": "mse", "model.dropout": 0.0, "data.higher_is_better": False})
    result, _ = trained(config, tmp_path / "trial", cache)
    assert result.metrics["srcc"] > 0.5
    assert result.model is not None
    assert not result.model.higher_is_better
    truth = dict(csv.reader((root / "val.csv").read_text().splitlines()[1:]))
    low, high = result.model.tail_cuts
    assert result.metrics["n_low"] == sum(float(score) >= high for score in truth.values())
    assert result.metrics["n_high"] == sum(float(score) <= low for score in truth.values())

    checkpoint = checkpoint_of_trial(TrialFolder(tmp_path / "trial"), result, None)
    save_checkpoint(checkpoint, tmp_path / "best.safetensors", "safetensors")
    loaded = load_checkpoint(tmp_path / "best.safetensors")
    assert not loaded.higher_is_better
    found = list(predict_images(loaded, list_images([root / "images"])))
    in_order = [one.score for one in best_first(found, loaded.higher_is_better)]
    assert in_order == sorted(in_order)

    own = evaluate_model(loaded, config.data, "val", cache=ImageCache(cache))
    file = evaluate_predictions(tmp_path / "trial" / "predictions.csv", predictions_data({}))
    for name in ("srcc", "accuracy", "mae_low", "mae_high"):
        assert own.metrics[name] == pytest.approx(result.metrics[name], abs=1e-3)
        assert file.metrics[name] == pytest.approx(result.metrics[name], abs=1e-3)
    # The same images with a MOS, where high is good: predictions are mirrored onto its scale.
    mos = [f"{name},{100 - float(score):.4f}" for name, score in truth.items()]
    (tmp_path / "mos.csv").write_text("\n".join(["name,MOS", *mos]) + "\n")
    overrides = {"data.scale": [0, 100], "data.higher_is_better": True}
    data = table_data(loaded, tmp_path / "mos.csv", root / "images", overrides)
    other = evaluate_model(loaded, data, "test", cache=ImageCache(cache))
    for name in ("srcc", "accuracy", "mae", "mae_low", "mae_high", "n_low"):
        assert other.metrics[name] == pytest.approx(own.metrics[name], abs=1e-3), name
