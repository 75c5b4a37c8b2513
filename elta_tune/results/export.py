"""Hands over a trial's checkpoint, after a new process has measured it again."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import StudyError
from elta_tune.files import write_atomic
from elta_tune.method.scores import SCALE
from elta_tune.models.checkpoint import Checkpoint, save_checkpoint
from elta_tune.models.formats.convert import write_model
from elta_tune.models.formats.kinds import Kind
from elta_tune.models.outputs import naming_unwritable
from elta_tune.processes import child_environment, python_command
from elta_tune.records import Environment, StudyFolder, TrialResult
from elta_tune.results.sources import checkpoint_of_trial
from elta_tune.training.devices import available_devices

TOLERANCE = 1e-5
"""Predictions of the exported file and of the trial's best epoch, on 1…10, agree to this on the same make of device."""
TOLERANCE_FROZEN = 1e-4
"""The same over a frozen backbone, whose features another number of threads may have computed for all trials."""
TOLERANCE_ELSEWHERE = 1e-3
"""The same on another make of device, where sums run in another order."""


def export(study: StudyFolder, result: TrialResult, path: Path, kind: Kind, *, cache: ImageCache) -> float:
    """Writes the model of a trial's best epoch, after a new process has measured it on the validation split.

    Returns:
        The largest difference of a predicted score, or of what `write_model` compares.

    Raises:
        StudyError: the trial's files are gone or damaged, the data have changed, the model does not predict as the
            trial did: by how much; or the file can't be written.
    """
    checkpoint, predictions = trial_checkpoint(study, result), study.trial(result.trial or 0).predictions_file
    with naming_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    measured = _measured(checkpoint, "val", cache=cache, like=result.environment)
    difference = _compare(checkpoint, result, predictions, measured)
    return max(difference, write_model(checkpoint, path, kind))


def measure_trial(study: StudyFolder, result: TrialResult, split: str, *, cache: ImageCache) -> dict[str, Any]:
    """Evaluates the weights of a trial's best epoch on a split, as `measure` does."""
    return _measured(trial_checkpoint(study, result), split, cache=cache, like=result.environment)


def _measured(checkpoint: Checkpoint, split: str, *, cache: ImageCache, like: Environment | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trial.ckpt"  # which tells where its data are, as other formats do not
        with naming_unwritable(file):
            write_atomic(file, lambda aside: save_checkpoint(checkpoint, aside, "ckpt"))
        return measure(file, split, cache=cache, like=like)


def trial_checkpoint(study: StudyFolder, result: TrialResult) -> Checkpoint:
    """The checkpoint of the best epoch of a study's trial.

    Raises:
        StudyError, ModelError: as `checkpoint_of_trial`.
    """
    return checkpoint_of_trial(study.trial(result.trial or 0), result, study.name)


def measure(checkpoint: Path, split: str, *, cache: ImageCache, like: Environment | None) -> dict[str, Any]:
    """Evaluates a checkpoint file in a new process: `metrics`, `ids`, `scores`, `data`, `environment`.

    Args:
        like: the environment that a trial recorded: the same device and threads are used if they are here.

    Raises:
        StudyError: the process failed, with the last line that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        device, threads = ("cpu", 1) if like is None else (_device_like(like.device), like.threads)
        arguments = (str(checkpoint), split, str(cache.root), device, str(threads), str(out))
        command = python_command("elta_tune.results.measure", *arguments)
        done = subprocess.run(command, env=child_environment(), capture_output=True, encoding="utf-8", check=False)
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


def _make(device: str, name: str) -> tuple[str, str]:
    """Kind and name of a device: `cuda:0` and `cuda:1` may be of one make."""
    return device.partition(":")[0], name


def _compare(checkpoint: Checkpoint, result: TrialResult, predictions: Path, measured: dict[str, Any]) -> float:
    """The largest difference of a prediction, if it and the metrics' are within the tolerance."""
    for split in ("train", "val"):  # the former cuts the scale into low, mid and high
        before, now = (result.data or {})[split], measured["data"][split]
        if before.hash != now["hash"]:
            raise StudyError(
                f"{now['file']}: its images or ratings have changed since the trial "
                f"({before.rows} rows then, {now['rows']} now)",
                "restore the file: the trial's metrics hold for what it was trained and measured on",
            )
    then, now = result.environment, measured["environment"]
    alike = then is not None and _make(then.device, then.device_name) == _make(now["device"], now["device_name"])
    freeze = checkpoint.config.model.freeze
    same = alike and not freeze
    low, high = checkpoint.scale
    tolerance = TOLERANCE if same else TOLERANCE_FROZEN if alike else TOLERANCE_ELSEWHERE
    tolerance *= (high - low) / (SCALE[1] - SCALE[0])
    difference = _largest_difference(predictions, measured)
    if not difference <= tolerance:
        raise StudyError(
            f"the exported file does not predict as trial {result.trial} did: scores differ by up to "
            f"{difference:.3g}, more than {tolerance:.3g}; nothing was written",
            "the trial's weights, or validation images, are not what they were",
        )
    for name, value in result.metrics.items():
        again = measured["metrics"].get(name)
        # Ranks and thresholds jump where predictions tie within the tolerance: elsewhere two images may change sides.
        count = len(measured["ids"])
        allowed = tolerance + (10 / count**2 if same else max(0.01, 2 / count))
        if value is not None and (again is None or not math.isclose(value, again, rel_tol=1e-4, abs_tol=allowed)):
            raise StudyError(f"the exported file's {name} is {again}, the trial's {value}; nothing was written")
    return difference


def _largest_difference(predictions: Path, measured: dict[str, Any]) -> float:
    """Of the scores in a trial's `predictions.csv` and those measured now."""
    try:
        with predictions.open(encoding="utf-8", newline="") as file:
            own = list(csv.DictReader(file))
        now = dict(zip(measured["ids"], measured["scores"], strict=True))  # the file's rows may stand in another order
        if sorted(row["image_id"] for row in own) != sorted(now):
            raise ValueError("it does not list the images of the validation split")
        return float(np.abs([float(row["score"]) - now[row["image_id"]] for row in own]).max())
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StudyError(f"{predictions}: the trial's predictions can't be read: {error}") from error
