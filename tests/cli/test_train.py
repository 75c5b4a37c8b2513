"""`elta-tune train`: one trial in the foreground, which resumes where Ctrl-C stopped it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from elta_tune.cli import app
from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.records import TrialFolder
from elta_tune.trial import NoReporter, run_trial

Run = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = ("train", "tiny.yaml", "--set", "training.epochs=30", "--out", "broken")
TIMES = ("seconds", "elapsed", "images_per_second", "peak_memory_mb")


def curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics, but for what no seed decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_resuming_after_ctrl_c_gives_the_uninterrupted_result(
    elta_tune: Run, recipe: TrialConfig, recipe_file: Path, cache: Path, tmp_path: Path
) -> None:
    command = Path(sys.executable).with_name("elta-tune")
    environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "COLUMNS": "80"}
    process = subprocess.Popen([command, *TRAIN], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/30"):
            break
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 130
    done = len(curve(tmp_path / "broken"))
    assert 3 <= done < 30
    assert not (tmp_path / "broken" / "result.json").exists()

    offered = re.search(r"to go on(?:, each trial from its last epoch)?:\n  elta-tune (.*)", said)
    assert offered is not None, said
    again = elta_tune(*shlex.split(offered[1]))
    assert again.returncode == 0, again.stderr
    first = re.search(r"^epoch (\d+)/30", again.stdout, re.MULTILINE)
    assert first is not None
    assert int(first[1]) >= done  # the last one is reported again
    result = json.loads((tmp_path / "broken" / "result.json").read_text())
    assert f"complete: srcc {result['value']:.4f} at step {result['best_step']}" in again.stdout

    torch.set_num_threads(result["environment"]["threads"])
    config = recipe.replace({"training.epochs": 30})
    whole = run_trial(config, TrialFolder(tmp_path / "whole"), NoReporter(), cache=ImageCache(cache))
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")
    assert result["metrics"] == whole.metrics


def test_failed_training_reports_its_cause(
    recipe_file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "tiny.yaml", "--set", "optim.lr=1e30", "--cache", str(cache)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1
    folder = tmp_path / "runs" / "train-tiny"
    reason = json.loads((folder / "result.json").read_text())["reason"]
    assert reason.startswith("the loss became")
    assert f"failed: {reason}" in done.output
    assert "choose another: --out FOLDER" in done.output


def test_a_folder_that_is_taken_or_no_folder_is_refused(elta_tune: Run, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = elta_tune("train", "tiny.yaml", "--out", "file/folder")
    message = f"elta-tune: {tmp_path}/file/folder: can't be written: Not a directory\n  choose another --out\n"
    assert (refused.returncode, refused.stderr) == (2, message)
    with TrialFolder(tmp_path / "taken").lock():
        refused = elta_tune("train", "tiny.yaml", "--out", "taken")
    message = f"elta-tune: {tmp_path}/taken: is being trained (process {os.getpid()})\n  choose another --out\n"
    assert (refused.returncode, refused.stderr) == (2, message)
