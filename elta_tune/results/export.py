"""Hands over a trial's checkpoint, after a new process has measured it again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from elta_tune.errors import StudyError
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.results.checkpoint import Format, save_checkpoint
from elta_tune.results.convert import write_card, write_model
from elta_tune.results.kinds import Kind
from elta_tune.results.sources import trial_checkpoint
from elta_tune.training.devices import available_devices

TOLERANCE = 1e-5
"""Predictions of the exported file and of the trial's best epoch agree to this, on one kind of device."""
TOLERANCE_ELSEWHERE = 1e-3
"""The same where the trial ran on another kind of device, whose sums run in another order."""


def export(study: StudyFolder, result: dict[str, Any], path: Path, kind: Kind, *, cache: Path) -> float:
    """Writes the weights of a trial's best epoch, after measuring them again on the validation split.

    Returns:
        The largest difference of a predicted score.

    Raises:
        StudyError: the trial has no weights, or the file does not predict as the trial did: by how much.
    """
    trial = study.trial(result["trial"])
    checkpoint = trial_checkpoint(trial, result, study.name)
    device = _device_like(result)
    own: Format = "ckpt" if kind == "ckpt" else "safetensors"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(checkpoint, aside, own)
        difference = _compare(trial, result, measure(aside, "val", cache=cache, device=device), device)
        if kind != own:
            return max(difference, write_model(checkpoint, path, kind))
        aside.replace(path)
        if kind == "safetensors":
            write_card(checkpoint, path)
    except OSError as error:
        raise StudyError(f"{path}: can't be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return difference


def measure_trial(study: StudyFolder, result: dict[str, Any], split: str, *, cache: Path) -> dict[str, Any]:
    """Evaluates the weights of a trial's best epoch on a split, as `measure` does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"trial-{result['trial']}.safetensors"
        save_checkpoint(trial_checkpoint(study.trial(result["trial"]), result, study.name), file, "safetensors")
        return measure(file, split, cache=cache, device=_device_like(result))


def _device_like(result: dict[str, Any]) -> str:
    """The kind of device that the trial ran on if there is one here, else the CPU."""
    kind = str(result["environment"]["device"]).partition(":")[0]
    return next((name for name in available_devices() if name.partition(":")[0] == kind), "cpu")


def measure(checkpoint: Path, split: str, *, cache: Path, device: str) -> dict[str, Any]:
    """Evaluates a checkpoint file in a new process: `metrics`, `ids`, `scores`, `data` of the split.

    Raises:
        StudyError: the process failed, with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [
            sys.executable,
            "-m",
            "elta_tune.results.measure",
            str(checkpoint),
            split,
            str(cache),
            device,
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise StudyError(f"{checkpoint}: can't be measured on {split}: {said}")
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def _compare(trial: TrialFolder, result: dict[str, Any], measured: dict[str, Any], device: str) -> float:
    """The largest difference of a prediction, if it and the metrics' are within the tolerance."""
    own = pd.read_csv(trial.predictions_file, dtype={"image_id": str}, float_precision="round_trip")
    if list(own["image_id"]) != measured["ids"]:
        raise StudyError(f"{trial.predictions_file}: the validation split has changed since the trial", "restore it")
    same = result["environment"]["device"].partition(":")[0] == device.partition(":")[0]
    tolerance = TOLERANCE if same else TOLERANCE_ELSEWHERE
    difference = float(np.abs(own["score"].to_numpy() - np.array(measured["scores"])).max())
    if not difference <= tolerance:
        raise StudyError(
            f"the exported file does not predict as trial {result['trial']} did: scores differ by up to "
            f"{difference:.3g}, more than {tolerance:g}; nothing was written"
        )
    for name, value in result["metrics"].items():
        again = measured["metrics"].get(name)
        # Ranks and thresholds jump where two predictions tie within the tolerance: a share of the images may flip.
        allowed = tolerance + 10 / len(own) ** 2 if same else 0.01
        if value is not None and (again is None or not math.isclose(value, again, rel_tol=1e-4, abs_tol=allowed)):
            raise StudyError(f"the exported file's {name} is {again}, the trial's {value}; nothing was written")
    return difference
