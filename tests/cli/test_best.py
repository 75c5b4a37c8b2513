"""`elta-tune best`: the best trial as JSON and as a checkpoint that was measured again."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

Run = Callable[..., subprocess.CompletedProcess[str]]


def results(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((study / "trials").glob("*/result.json"))]


def test_only_json_is_on_stdout_and_the_checkpoint_in_its_file(elta_tune: Run, finished: Path) -> None:
    """The checkpoint is measured on the validation and the test split, in new processes."""
    (finished.parents[1] / "best.ckpt").write_text("precious")
    arguments = ("best", "--json", "--test", "--export", "ckpt")
    refused = elta_tune(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "best.ckpt: already exists" in refused.stderr
    assert (finished.parents[1] / "best.ckpt").read_text() == "precious"
    done = elta_tune(*arguments, "--force")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    best = max(results(finished), key=lambda result: result["value"])
    assert answer["study"] == "space-tiny"
    assert {name: answer[name] for name in ("trial", "value", "params", "metrics")} == {
        name: best[name] for name in ("trial", "value", "params", "metrics")
    }
    assert answer["recipe"]["trial"] == 0
    assert answer["recipe"]["test"].keys() == answer["test"].keys()  # the gain of tuning on unseen images
    assert {"srcc", "plcc", "accuracy"} <= answer["test"].keys()
    assert answer["test"] != answer["metrics"]
    assert answer["test_data"]["rows"] == 16
    assert answer["difference"] <= 1e-5
    path = Path(answer["checkpoint"])
    assert path == finished.parents[1] / "best.ckpt"

    content = torch.load(path, weights_only=True)
    weights = load_file(finished / "trials" / f"{best['trial']:04d}" / "best.safetensors")
    assert all(torch.equal(content["state_dict"][name], weights[name]) for name in weights)
    assert (content["metrics"], content["epoch"]) == (best["metrics"], best["best_epoch"])
    assert content["config"]["optim"]["lr"] == best["params"]["optim.lr"]


def test_table_shows_main_metrics_next_to_the_recipe(elta_tune: Run, finished: Path) -> None:
    ranking = sorted(results(finished), key=lambda result: -result["value"])
    brief, whole = elta_tune("best", "space-tiny").stdout, elta_tune("best", "space-tiny", "--all").stdout
    assert brief.startswith(f"study space-tiny: trial {ranking[0]['trial']}, best at step")
    recipe, is_best = results(finished)[0], ranking[0]["trial"] == 0
    for output in (brief, whole):
        line = next(line for line in output.splitlines() if line.split()[:1] == ["srcc"])
        values = [ranking[0]["value"], *([] if is_best else [recipe["value"]])]
        assert line.split() == ["srcc", *(f"{value:.4f}" for value in values)]
        assert max(len(line) for line in output.splitlines() if not line.startswith("checkpoint: ")) <= 80
    shown = [
        line.split()[0] for line in brief.splitlines() if line.split()[:1] and line.split()[0] in recipe["metrics"]
    ]
    assert shown == ["srcc", "plcc", "accuracy", "mae", "bmae", "std_ratio"]
    assert f"{len(recipe['metrics'])} metrics in all: --all shows them" in brief
    assert all(f"\n{name} " in whole or f" {name} " in whole for name in recipe["metrics"])


def test_best_trial_0_is_shown_once(elta_tune: Run, finished: Path, tmp_path: Path) -> None:
    """And what was compared for an export is said with the number of images."""
    shutil.copytree(finished, tmp_path / "runs" / "one")
    for trial in (tmp_path / "runs" / "one" / "trials").iterdir():
        if trial.name != "0000":
            shutil.rmtree(trial)
    done = elta_tune("best", "one", "--runs", tmp_path / "runs", "--export", "ckpt", "--out", tmp_path / "one.ckpt")
    assert "trial 0, the recipe as it stands, is the best trial" in done.stdout
    assert "of trial 0" not in done.stdout
    assert re.search(r"compared: a new process's predictions of \d+ validation images with the trial's", done.stdout)
    assert "0.0e+00" not in done.stdout


def test_predictions_of_the_best_epoch_are_recorded(finished: Path, data_root: Path) -> None:
    """The metrics that chose the winner are those of its predictions."""
    from scipy.stats import spearmanr

    for result in results(finished):
        folder = finished / "trials" / f"{result['trial']:04d}"
        with (folder / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        truth, scores = (np.array([float(row[name]) for row in rows]) for name in ("gt", "score"))
        assert result["value"] == pytest.approx(spearmanr(truth, scores).statistic, abs=1e-12)
        curve = [json.loads(line)["srcc"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert result["value"] == max(curve)
        assert result["best_step"] == 1 + curve.index(max(curve))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "there is no study 'nowhere' in runs"),
        (("space-tyni",), "did you mean 'space-tiny'?"),
        (("--export", "onix"), "unknown export format 'onix'"),
        (("--output", "x.ckpt"), "--output: needs --export"),
        (("--runs", "elsewhere"), "there is no study in elsewhere"),
    ],
)
def test_invalid_arguments_are_refused(
    elta_tune: Run, finished: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = elta_tune("best", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
