"""Evaluating a file, a trial, other images and predictions that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.errors import DataError
from elta_tune.records import TrialFolder
from elta_tune.results.checkpoint import save_checkpoint
from elta_tune.results.evaluate import evaluate_model, evaluate_predictions, table_data
from elta_tune.results.sources import checkpoint_of_trial, load_model
from elta_tune.trial import NoReporter, run_trial

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "method_vectors.json").read_text())["metrics"]
NO_DATA = DataConfig()


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, data_root: Path, cache: Path) -> TrialFolder:
    """A finished trial."""
    config = TrialConfig.model_validate(
        {
            "data": {"root": str(data_root), "resize": 36, "crop": 32},
            "model": {"backbone": "test_efficientnet", "pretrained": False},
            "optim": {"lr": 3e-3},
            "training": {"epochs": 2, "batch_size": 8},
        }
    )
    folder = TrialFolder(tmp_path_factory.mktemp("evaluate") / "trial")
    assert run_trial(config, folder, NoReporter(), cache=cache)["state"] == "complete"
    return folder


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_an_exported_file_has_the_metrics_of_result_json(
    trial: TrialFolder, kind: Any, command: Callable[..., Any], tmp_path: Path
) -> None:
    result = trial.result()
    assert result is not None
    save_checkpoint(checkpoint_of_trial(trial, result, None), tmp_path / f"best.{kind}", kind)
    done = command("evaluate", f"best.{kind}", "--json", "--predictions", "again.csv")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["metrics"] == pytest.approx(result["metrics"], abs=1e-5)
    assert told["data"] == result["data"]["val"]
    again, before = (pd.read_csv(file) for file in (tmp_path / "again.csv", trial.predictions_file))
    assert list(again.columns) == list(before.columns)
    np.testing.assert_allclose(again.drop(columns="image_id"), before.drop(columns="image_id"), atol=1e-5)


def test_another_scale_of_ratings_changes_errors_in_proportion_and_no_rank(
    trial: TrialFolder, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoint = load_model(str(trial.path), tmp_path)
    own = evaluate_model(checkpoint, checkpoint.config.data, "test", cache=cache)
    data = table_data(checkpoint, data_root / "test.csv", data_root / "images", {"data.scale": [1, 9]})
    doubled = evaluate_model(checkpoint, data, "test", cache=cache)
    assert doubled.metrics["srcc"] == pytest.approx(own.metrics["srcc"])
    np.testing.assert_allclose(doubled.predictions.scores - 1, 2 * (own.predictions.scores - 1), rtol=1e-6)


def test_other_images_are_found_beside_their_ratings(
    trial: TrialFolder, data_root: Path, command: Callable[..., Any]
) -> None:
    by_split = command("evaluate", trial.path, "--split", "test", "--json")
    by_table = command("evaluate", trial.path, "--csv", data_root / "test.csv", "--json")
    first, second = json.loads(by_split.stdout), json.loads(by_table.stdout)
    assert first["metrics"] == second["metrics"]
    assert first["data"]["hash"] == second["data"]["hash"]


@pytest.mark.parametrize("vectors", VECTORS, ids=["first", "second"])
def test_predictions_have_the_figures_of_scipy_and_the_released_code(vectors: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "test_result.csv"
    ids = [f"{n:05d}" for n in range(len(vectors["gt"]))]
    columns = {"image_id": ids, "gt": vectors["gt"], "score": vectors["pred"]}
    shares = {f"score{k + 2}": np.full(len(vectors["gt"]), 0.1) for k in range(10)}
    pd.DataFrame({**columns, **shares}).to_csv(file, index=False)
    found = evaluate_predictions(file, NO_DATA).metrics
    expected = vectors["expected"]
    assert found["srcc"] == pytest.approx(stats.spearmanr(vectors["gt"], vectors["pred"]).statistic, abs=1e-12)
    assert found["plcc"] == pytest.approx(stats.pearsonr(vectors["gt"], vectors["pred"]).statistic, abs=1e-12)
    for name in ("plcc", "srcc", "mae", "accuracy"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    assert found["rmse"] ** 2 == pytest.approx(expected["mse"], abs=1e-6)
    assert "mae_low" not in found


def test_the_predictions_of_a_trial_are_measured_by_the_trials_own_tails(trial: TrialFolder) -> None:
    result = trial.result()
    assert result is not None
    found = evaluate_predictions(trial.predictions_file, NO_DATA).metrics
    assert found == pytest.approx({name: result["metrics"][name] for name in found}, abs=1e-9)
    assert found["n_low"] + found["n_mid"] + found["n_high"] >= 16


def test_a_named_training_file_gives_tails_and_scale(trial: TrialFolder, data_root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "predictions.csv"
    alone.write_bytes(trial.predictions_file.read_bytes())
    found = evaluate_predictions(alone, DataConfig(train=data_root / "train.csv")).metrics
    assert found == evaluate_predictions(trial.predictions_file, NO_DATA).metrics


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image_id,gt,score\na,5,5.1\nb,5,none\n", ":3: score: 'none' is not a number"),
        ("image_id,score\na,5\n", "no column gt"),
        ("image_id,gt\na,5\n", "not a file of predictions"),
        ("image_id,gt,score\n", "no rows"),
    ],
)
def test_a_wrong_file_of_predictions_is_refused(text: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=r"wrong\.csv") as refused:
        evaluate_predictions(file, NO_DATA)
    assert told in refused.value.message


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "either a model, or --from-predictions"),
        (("nothing", "--json"), "nothing"),
        (("nothing", "--csv", "a.csv", "--split", "val"), "exclude each other"),
        (("nothing", "--set", "model.head=mse"), "nothing"),
        (("nothing", "--images", "photos"), "--images: needs --csv"),
    ],
)
def test_what_can_not_be_evaluated_is_one_line(
    arguments: tuple[str, ...], told: str, command: Callable[..., Any]
) -> None:
    done = command("evaluate", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
