"""`elta-tune train`: one trial in the foreground, that goes on where Ctrl-C left it."""

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

Run = Callable[..., subprocess.CompletedProcess[str]]
TRAIN = ("train", "tiny.yaml", "--set", "training.epochs=30")
TIMES = ("seconds", "elapsed", "images_per_second", "peak_memory_mb")


def curve(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_ctrl_c_and_the_command_that_it_offers_give_the_unbroken_training(
    elta_tune: Run, recipe_file: Path, cache: Path, tmp_path: Path
) -> None:
    whole = elta_tune(*TRAIN, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert re.search(r"^epoch 30/30  loss [\d.]+  srcc -?[\d.]+  plcc -?[\d.]+  accuracy [\d.]+", whole.stdout, re.M)
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert f"complete: srcc {result['value']:.4f} at step {result['best_step']}" in whole.stdout

    command = Path(sys.executable).with_name("elta-tune")
    environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "COLUMNS": "80"}
    process = subprocess.Popen(
        [command, *TRAIN, "--out", "broken"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/30"):
            break
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    process.stdout.close()
    assert process.wait(60) == 130
    assert "Traceback" not in said
    done = len(curve(tmp_path / "broken"))
    assert 3 <= done < 30
    assert not (tmp_path / "broken" / "result.json").exists()

    offered = re.search(r"to go on(?:, each trial from its last epoch)?:\n  elta-tune (.*)", said)
    assert offered is not None, said
    again = elta_tune(*shlex.split(offered[1]))
    assert again.returncode == 0, again.stderr
    first = re.search(r"^epoch (\d+)/30", again.stdout, re.MULTILINE)
    assert first is not None
    assert int(first[1]) >= done  # the last one is told of once more
    assert curve(tmp_path / "broken") == curve(tmp_path / "whole")

    refused = elta_tune(*TRAIN, "--set", "optim.lr=0.5", "--out", "broken")
    assert refused.returncode == 2
    assert "another configuration was trained here" in refused.stderr


def test_a_failed_training_says_why(elta_tune: Run, recipe_file: Path, tmp_path: Path) -> None:
    done = elta_tune("train", "tiny.yaml", "--set", "optim.lr=1e30")
    assert done.returncode == 1
    assert "failed: the loss became" in done.stdout
    assert "choose another with --out" in done.stdout
    assert (tmp_path / "runs" / "train-tiny" / "result.json").exists()
