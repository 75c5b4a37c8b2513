"""Hands over a trial's checkpoint, after a new process has measured it again."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from elta_tune.errors import StudyError
from elta_tune.records import UMASK, StudyFolder
from elta_tune.results.checkpoint import Checkpoint, Format, save_checkpoint
from elta_tune.results.convert import write_card, write_model
from elta_tune.results.kinds import Kind
from elta_tune.results.sources import checkpoint_of_trial
from elta_tune.training.devices import available_devices

TOLERANCE = 1e-5
"""Predictions of the exported file and of the trial's best epoch agree to this, on the same kind and make of device."""
TOLERANCE_ELSEWHERE = 1e-3
"""The same where the trial ran on another device, whose sums run in another order."""


def export(study: StudyFolder, result: dict[str, Any], path: Path, kind: Kind, *, cache: Path) -> float:
    """Writes the weights of a trial's best epoch, after a new process has measured them on the validation split.

    Returns:
        The largest difference of a predicted score.

    Raises:
        StudyError: the trial's files are gone or damaged, the data have changed, or the file does not predict as the
            trial did: by how much.
    """
    checkpoint, predictions = trial_checkpoint(study, result), study.trial(result["trial"]).predictions_file
    own: Format = "ckpt" if kind == "ckpt" else "safetensors"
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _writing(path):
            save_checkpoint(checkpoint, aside, own)
        measured = measure(aside, "val", cache=cache, like=result["environment"])
        difference = _compare(result, predictions, measured)
        if kind != own:
            return max(difference, write_model(checkpoint, path, kind))
        with _writing(path):
            aside.chmod(0o666 & ~UMASK)  # safetensors writes for the owner alone
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if kind == "safetensors":
        write_card(checkpoint, path)
    return difference


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        raise StudyError(f"{path}: can't be written: {error}") from error


def measure_trial(study: StudyFolder, result: dict[str, Any], split: str, *, cache: Path) -> dict[str, Any]:
    """Evaluates the weights of a trial's best epoch on a split, as `measure` does."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"trial-{result['trial']}.safetensors"
        save_checkpoint(trial_checkpoint(study, result), file, "safetensors")
        return measure(file, split, cache=cache, like=result["environment"])


def trial_checkpoint(study: StudyFolder, result: dict[str, Any]) -> Checkpoint:
    """The checkpoint of the best epoch of a study's trial.

    Raises:
        StudyError, ModelError: as `checkpoint_of_trial`.
    """
    return checkpoint_of_trial(study.trial(result["trial"]), result, study.name)


def measure(checkpoint: Path, split: str, *, cache: Path, like: dict[str, Any]) -> dict[str, Any]:
    """Evaluates a checkpoint file in a new process: `metrics`, `ids`, `scores`, `data`, `environment`.

    Args:
        like: the environment that a trial recorded. The same device and threads are used where they are here.

    Raises:
        StudyError: the process failed, with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        # -P: no module of the working directory stands in for one of ours.
        command = [sys.executable, "-P", "-m", "elta_tune.results.measure", str(checkpoint), split, str(cache)]
        command += [_device_like(like["device"]), str(like["threads"]), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise StudyError(f"the checkpoint can't be measured on the {split} split: {said}")
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured


def _device_like(name: str) -> str:
    """The device of that name if it is here, else one of its kind, else the CPU."""
    here = available_devices()
    kind = name.partition(":")[0]
    return name if name in here else next((other for other in here if other.partition(":")[0] == kind), "cpu")


def _make(environment: dict[str, Any]) -> tuple[str, str]:
    """Kind and name of a device: `cuda:0` and `cuda:1` may be of one make."""
    return environment["device"].partition(":")[0], environment["device_name"]


def _compare(result: dict[str, Any], predictions: Path, measured: dict[str, Any]) -> float:
    """The largest difference of a prediction, if it and the metrics' are within the tolerance."""
    for split in ("train", "val"):  # the former cuts the scale into low, mid and high
        before, now = result["data"][split], measured["data"][split]
        if before["hash"] != now["hash"]:
            raise StudyError(
                f"{now['file']}: its images or ratings have changed since the trial "
                f"({before['rows']} rows then, {now['rows']} now)",
                "restore the file: the trial's metrics hold for what it was trained and measured on",
            )
    same = _make(result["environment"]) == _make(measured["environment"])
    tolerance = TOLERANCE if same else TOLERANCE_ELSEWHERE
    difference = _largest_difference(predictions, measured)
    if not difference <= tolerance:
        raise StudyError(
            f"the exported file does not predict as trial {result['trial']} did: scores differ by up to "
            f"{difference:.3g}, more than {tolerance:g}; nothing was written",
            "the trial's weights, or validation images, are not what they were",
        )
    for name, value in result["metrics"].items():
        again = measured["metrics"].get(name)
        # Ranks and thresholds jump where predictions tie within the tolerance: elsewhere two images may change sides.
        count = len(measured["ids"])
        allowed = tolerance + 10 / count**2 if same else max(0.01, 2 / count)
        if value is not None and (again is None or not math.isclose(value, again, rel_tol=1e-4, abs_tol=allowed)):
            raise StudyError(f"the exported file's {name} is {again}, the trial's {value}; nothing was written")
    return difference


def _largest_difference(predictions: Path, measured: dict[str, Any]) -> float:
    """Of the scores in a trial's `predictions.csv` and those measured now."""
    try:
        with predictions.open(encoding="utf-8", newline="") as file:
            own = list(csv.DictReader(file))
        if [row["image_id"] for row in own] != measured["ids"]:
            raise ValueError("it does not list the images of the validation split")
        return float(np.abs(np.array([float(row["score"]) for row in own]) - np.array(measured["scores"])).max())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{predictions}: the trial's predictions can't be read: {error}") from error
