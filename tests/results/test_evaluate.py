"""Evaluating a file, a trial, other images and existing predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn.modules.module import register_module_forward_pre_hook

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import ConfigError, DataError, OutOfMemoryError
from elta_tune.models.checkpoint import Checkpoint, save_checkpoint
from elta_tune.records import TrialFolder
from elta_tune.results.evaluate import evaluate_model, evaluate_predictions, predictions_data, table_data
from elta_tune.results.measure import measure_checkpoint
from elta_tune.results.sources import checkpoint_of_trial, load_model

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "method_vectors.json").read_text())["metrics"]
NO_DATA = DataConfig()


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_an_exported_file_has_the_metrics_of_result_json(
    trial: TrialFolder, kind: Any, data_root: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    result = trial.result()
    assert result is not None
    save_checkpoint(checkpoint_of_trial(trial, result, None), tmp_path / f"best.{kind}", kind)
    place = ("--set", f"data.root={data_root}") if kind == "safetensors" else ()  # which does not contain their path
    done = command("evaluate", f"best.{kind}", "--json", "--predictions", "again.csv", *place)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["metrics"] == pytest.approx(result.metrics, abs=1e-5)
    assert answer["data"] == asdict(result.data["val"])
    again, before = (pd.read_csv(file) for file in (tmp_path / "again.csv", trial.predictions_file))
    assert list(again.columns) == list(before.columns)
    np.testing.assert_allclose(again.drop(columns="image_id"), before.drop(columns="image_id"), atol=1e-5)


def test_another_rating_scale_scales_errors_but_not_ranks(
    trial: TrialFolder, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoint = load_model(str(trial.path), tmp_path)
    own = evaluate_model(checkpoint, checkpoint.config.data, "test", cache=ImageCache(cache))
    data = table_data(checkpoint, data_root / "test.csv", data_root / "images", {"data.scale": [1, 9]})
    doubled = evaluate_model(checkpoint, data, "test", cache=ImageCache(cache))
    assert doubled.metrics["srcc"] == pytest.approx(own.metrics["srcc"])
    np.testing.assert_allclose(doubled.predictions.scores - 1, 2 * (own.predictions.scores - 1), rtol=1e-6)


def test_images_are_found_next_to_their_ratings(
    trial: TrialFolder, data_root: Path, command: Callable[..., Any]
) -> None:
    by_split = command("evaluate", trial.path, "--split", "test", "--json")
    by_table = command("evaluate", trial.path, "--csv", data_root / "test.csv", "--json")
    first, second = json.loads(by_split.stdout), json.loads(by_table.stdout)
    assert first["metrics"] == second["metrics"]
    assert first["data"]["hash"] == second["data"]["hash"]


def test_split_column_drops_no_row_of_a_named_rating_file(
    trial: TrialFolder, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(data_root / "test.csv")
    table["split"] = ["train", "val", "test", "test"] * (len(table) // 4)
    table.to_csv(tmp_path / "ava.csv", index=False)
    checkpoint = load_model(str(trial.path), tmp_path)
    whole = table_data(checkpoint, tmp_path / "ava.csv", data_root / "images", {})
    assert evaluate_model(checkpoint, whole, "test", cache=ImageCache(cache)).data["rows"] == len(table)
    part = table_data(checkpoint, tmp_path / "ava.csv", data_root / "images", {"data.columns.split": "split"})
    assert evaluate_model(checkpoint, part, "test", cache=ImageCache(cache)).data["rows"] == len(table) / 2


def test_model_without_tails_takes_those_of_a_training_file(
    trial: TrialFolder, data_root: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    checkpoint = load_model(str(trial.path), tmp_path)
    imported = replace(checkpoint, tail_cuts=None, config=checkpoint.config.replace({"data.root": None}))
    save_checkpoint(imported, tmp_path / "imported.ckpt", "ckpt")
    arguments = ("evaluate", "imported.ckpt", "--csv", data_root / "test.csv")
    assert "name its file: --set data.train=FILE" in command(*arguments).stdout
    done = command(*arguments, "--json", "--set", f"data.train={data_root / 'train.csv'}")
    answer = json.loads(done.stdout)
    known = json.loads(command("evaluate", trial.path, "--split", "test", "--json").stdout)
    assert answer["metrics"] == known["metrics"]
    assert answer["tail_cuts"] == pytest.approx(known["tail_cuts"])
    gone = command(*arguments, "--set", f"data.train={tmp_path / 'gone.csv'}")
    assert (gone.returncode, "gone.csv: no such file" in gone.stderr) == (2, True)


def test_tails_from_a_training_file_are_put_on_the_rating_scale(
    trial: TrialFolder, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoint = replace(load_model(str(trial.path), tmp_path), tail_cuts=None, scale=(0.0, 100.0))
    data = DataConfig(root=data_root, resize=36, crop=32)
    found = evaluate_model(checkpoint, data, "test", cache=ImageCache(cache))
    votes = pd.read_csv(data_root / "train.csv").filter(regex="^count").to_numpy()
    scores = votes @ np.arange(1, 6) / votes.sum(axis=1)
    assert found.yardstick.scale == (1, 5)
    assert found.yardstick.tail_cuts == pytest.approx(np.percentile(scores, [20, 80]))


@pytest.mark.parametrize("vectors", VECTORS, ids=["first", "second"])
def test_prediction_metrics_match_scipy_and_the_released_code(vectors: dict[str, Any], tmp_path: Path) -> None:
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


def test_trial_predictions_are_measured_by_the_trials_own_tails(trial: TrialFolder) -> None:
    result = trial.result()
    assert result is not None
    found = evaluate_predictions(trial.predictions_file, NO_DATA).metrics
    assert found == pytest.approx({name: result.metrics[name] for name in found}, abs=1e-9)
    assert found["n_low"] + found["n_mid"] + found["n_high"] >= 16


def test_a_named_training_file_gives_tails_and_scale(trial: TrialFolder, data_root: Path, tmp_path: Path) -> None:
    alone = tmp_path / "predictions.csv"
    alone.write_bytes(trial.predictions_file.read_bytes())
    found = evaluate_predictions(alone, DataConfig(train=data_root / "train.csv")).metrics
    assert found == evaluate_predictions(trial.predictions_file, NO_DATA).metrics


def test_scale_and_threshold_are_printed_with_the_metrics(command: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text("image_id,gt,score\n" + "".join(f"{n},{n},{n + 40 if n == 20 else n}\n" for n in range(100)))
    refused = command("evaluate", "--from-predictions", file)
    assert refused.returncode == 2
    assert f"{file}:2: gt: '0' is outside the scale 1…10; " in refused.stderr
    assert "--set 'data.scale=[lowest,highest]'" in refused.stderr
    answer = json.loads(command("evaluate", "--from-predictions", file, "--set", "data.scale=[0,100]", "--json").stdout)
    assert (answer["scale"], answer["threshold"], answer["tail_cuts"]) == ([0, 100], 50, None)
    assert answer["metrics"]["accuracy"] == 0.99
    plain = command("evaluate", "--from-predictions", file, "--set", "data.scale=[0,100]")
    assert "rating scale 0…100; a score above 50 is beautiful" in plain.stdout


@pytest.mark.parametrize(
    "content", ["[1]", '{"model": [1]}', '{"model": {"scale": 5}}', '{"accuracy": 0.9}', "no JSON"]
)
def test_foreign_result_file_next_to_predictions_is_ignored(content: str, tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_text("image_id,gt,score\na,4,5.1\nb,5.5,5\n")
    (tmp_path / "result.json").write_text(content)
    found = evaluate_predictions(file, NO_DATA)
    assert (found.yardstick.scale, found.yardstick.threshold, found.yardstick.tail_cuts) == ((1, 10), 5, None)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_predictions_that_are_not_a_table_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JSON lines and Parquet are not read"):
        evaluate_predictions(tmp_path / f"scores.{suffix}", NO_DATA)


def test_another_scale_ignores_threshold_and_tails_of_the_trial(trial: TrialFolder) -> None:
    other = evaluate_predictions(trial.predictions_file, DataConfig(scale=(0, 10))).yardstick
    assert (other.scale, other.threshold, other.tail_cuts) == ((0, 10), 5, None)
    same = evaluate_predictions(trial.predictions_file, DataConfig(scale=(1, 5))).yardstick
    assert same == evaluate_predictions(trial.predictions_file, NO_DATA).yardstick


def test_settings_that_do_not_affect_predictions_are_refused(data_root: Path) -> None:
    for name, value in (("data.columns.score", "pred"), ("data.crop", 64), ("data.trainer", 1)):
        with pytest.raises(ConfigError, match=rf"^`overrides`: {name}: has no effect here; what has: data\.scale, "):
            predictions_data({name: value})
    found = predictions_data({"data.columns.score": "MOS", "data.train": str(data_root / "train.csv")})
    assert found.columns.score == "MOS"


def test_model_that_predicts_nan_is_reported(
    diverged: Checkpoint, data_root: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    noted = replace(diverged, source={**diverged.source, "note": "is imported"})
    save_checkpoint(noted, tmp_path / "nan.ckpt", "ckpt")
    done = command("evaluate", "nan.ckpt", "--csv", data_root / "val.csv")
    rows = len(pd.read_csv(data_root / "val.csv"))
    assert done.returncode == 0, done.stderr
    assert f"nan.ckpt: is imported; its output is not finite for {rows} of {rows} images" in done.stderr


def test_shares_may_be_rounded(tmp_path: Path) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(10), 50)
    columns = {"image_id": range(50), "gt": 5.0, "score": 5.0}
    columns |= {f"score{k + 2}": shares[:, k].round(3) for k in range(10)}
    pd.DataFrame(columns).to_csv(tmp_path / "predictions.csv", index=False)
    read = evaluate_predictions(tmp_path / "predictions.csv", NO_DATA).predictions.distributions
    assert read is not None
    np.testing.assert_allclose(read, shares, atol=3e-3)
    np.testing.assert_allclose(read.sum(axis=1), 1, atol=1e-6)


def test_predictions_are_written_where_nothing_is_lost(
    trial: TrialFolder, command: Callable[..., Any], tmp_path: Path
) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("precious")
    arguments = ("evaluate", "--from-predictions", trial.predictions_file, "--predictions")
    refused = command(*arguments, "mine.csv")
    assert (refused.returncode, refused.stdout, mine.read_text()) == (2, "", "precious")
    assert "--force, or choose another --predictions" in refused.stderr
    assert command(*arguments, "mine.csv", "--force").returncode == 0
    assert list(pd.read_csv(mine)["image_id"]) == list(pd.read_csv(trial.predictions_file)["image_id"])
    for place in ("/proc/nowhere/x.csv", "/proc/x.csv"):
        refused = command("evaluate", "no-model", "--predictions", place)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"elta-tune: {place}: can't be written: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,gt,score\na,5,5.1\nb,5,none\n", ":3: score: 'none' is not a number"),
        ("image_id,score\na,5\n", "no column gt"),
        ("image_id,gt\na,5\n", "not a file of predictions"),
        ("image_id,gt,score\n", "no rows"),
        ("image_id,gt,score\na,5,5\nb,5,5\na,6,5\n", ":4: image_id: 'a' stands in an earlier row too"),
        ("image_id,gt,score,score2,score4\na,5,5,1,0\n", "there is no column score3, but score4 is there"),
        ("image_id,gt,score,score3,score4\na,5,5,1,0\n", "there is no column score2, but score4 is there"),
        ("image_id,gt,score,score1,score2\na,5,5,1,0\n", "there is no column score3, but score1 is there"),
        ("image_id,gt,score,score02,score3\na,5,5,1,0\n", "there is no column score2, but score02 is there"),
    ],
)
def test_a_wrong_file_of_predictions_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=r"wrong\.csv") as refused:
        evaluate_predictions(file, NO_DATA)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either a model, or --from-predictions"),
        (("nothing", "--json"), "nothing"),
        (("nothing", "--csv", "a.csv", "--split", "val"), "exclude each other"),
        (("nothing", "--set", "model.head=mse"), "nothing"),
        (("nothing", "--images", "photos"), "--images: needs --csv"),
    ],
)
def test_model_that_cannot_be_evaluated_is_one_clear_error(
    arguments: tuple[str, ...], message: str, command: Callable[..., Any]
) -> None:
    done = command("evaluate", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_device_without_enough_memory_is_reported(trial: TrialFolder, cache: Path, tmp_path: Path) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    checkpoint = load_model(str(trial.path), tmp_path)
    save_checkpoint(checkpoint, tmp_path / "best.ckpt", "ckpt")
    with register_module_forward_pre_hook(full):
        with pytest.raises(OutOfMemoryError, match=r"^out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.$"):
            evaluate_model(checkpoint, checkpoint.config.data, "val", cache=ImageCache(cache))
        with pytest.raises(OutOfMemoryError):
            measure_checkpoint(tmp_path / "best.ckpt", "val", ImageCache(cache), "cpu")
