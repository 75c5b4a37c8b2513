"""One trial: the full ELTA training of a recipe, recorded in a folder and reported as it goes."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset, ImageSet
from elta_tune.data.prepare import open_dataset
from elta_tune.data.readers import read_ratings
from elta_tune.errors import DataError, OutOfMemoryError, TrialError
from elta_tune.method import metrics
from elta_tune.method.scores import method_bins
from elta_tune.records import TrialFolder, outcome
from elta_tune.training.devices import device_of
from elta_tune.training.self_training import Epoch, self_training_rounds

PACKAGES = ("elta-tune", "torch", "timm", "optuna", "numpy", "pandas", "scipy", "pillow")


OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")
"""CUDA and MPS; the CPU; cuBLAS and cuDNN."""


class TrialPruned(Exception):
    """The study has no hope in the trial."""


class TrialStopped(Exception):
    """The study pauses; the trial will be resumed."""


class Reporter(Protocol):
    """To whom a trial tells its epochs."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the validation metrics after an epoch.

        Raises:
            TrialPruned: the trial is to end here.
            TrialStopped: the trial is to pause here.
        """
        ...


class NoReporter:
    """Nobody listens: a trial without a study."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""


def run_trial(
    config: TrialConfig,
    folder: TrialFolder,
    reporter: Reporter,
    *,
    cache: Path,
    device: str = "cpu",
    number: int | None = None,
    params: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains a recipe to its end, or goes on where the folder's checkpoint stands.

    Each epoch is saved, then recorded, then reported: what a pruner or a kill ends has lost nothing.

    Args:
        cache: folder of the decoded images.
        number, params: what a study calls the trial and what it varies, for `result.json`.
        facts: what else `result.json` tells.

    Returns:
        The content of `result.json`: state is complete, pruned or failed (loss not finite, memory used up).

    Raises:
        TrialStopped: as the reporter said.
        EltaTuneError: data, model or folder do not allow the training to start.
    """
    folder.create(config.to_yaml())
    if (earlier := folder.result()) is not None:
        folder.clear()
        return earlier
    dataset = open_dataset(config.data, cache)
    resume = folder.checkpoint()
    started = time.monotonic() - (resume["record"]["elapsed"] if resume else 0.0)
    state, reason = "complete", None
    try:
        with out_of_memory_told():
            if resume is not None:
                _report(folder, reporter, resume["record"])
            for epoch in self_training_rounds(config, dataset, device_of(device), resume=resume, cache=cache):
                record = _record(epoch, time.monotonic() - started)
                folder.save(epoch, record)
                _report(folder, reporter, record)
    except TrialPruned:
        state, reason = "pruned", "worse than other trials at this step"
    except TrialError as error:
        state, reason = "failed", error.message
    checkpoint = folder.checkpoint()
    if checkpoint is not None:  # a verdict that comes as a signal may have come between save and append
        folder.append(checkpoint["record"])
    result: dict[str, Any] = {"trial": number, "state": state, "reason": reason, **outcome(checkpoint)}
    if state != "failed" and math.isnan(result["value"]):
        why = f"{config.evaluation.metric} is not a number in any epoch: the predictions are constant or not finite"
        result |= {"state": "failed", "reason": why}
    result |= {"params": dict(params or {}), "rounds": _rounds(folder, config, dataset, state)}
    result |= {"seconds": time.monotonic() - started, "data": describe_data(dataset)}
    result |= {"environment": environment(device), **(facts or {})}
    result["model"] = {
        "bins": None
        if dataset.bins is None or config.model.head == "mse"
        else method_bins(dataset.bins, dataset.scale).tolist(),
        "scale": dataset.scale,
        "threshold": dataset.threshold,
        "tail_cuts": dataset.tail_cuts,
    }
    folder.finish(result, checkpoint)
    return folder.result() or result


@contextlib.contextmanager
def out_of_memory_told(hint: str | None = None) -> Iterator[None]:
    """Makes one error of the many that allocators raise; any other fault goes on with its traceback."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (known or any(words in text.lower() for words in OUT_OF_MEMORY)):
            raise
        raise OutOfMemoryError(f"out of memory: {text.partition(chr(10))[0] or type(error).__name__}", hint) from error


def _report(folder: TrialFolder, reporter: Reporter, record: dict[str, Any]) -> None:
    folder.append(record)
    reporter.report(record["step"], record)


def _record(epoch: Epoch, elapsed: float) -> dict[str, Any]:
    """A line of `metrics.jsonl`."""
    place = {"step": epoch.step, "round": epoch.round, "epoch": epoch.epoch, "best_step": epoch.best.step}
    return {**place, **epoch.metrics, **epoch.training, "elapsed": elapsed}


def _rounds(folder: TrialFolder, config: TrialConfig, dataset: Dataset, state: str) -> list[dict[str, Any]]:
    """How many pseudo-labels each self-training round had, and how good they were where the pool has ratings after all.

    Those rounds that a complete trial lacks had nothing to train on.
    """
    selected = {line["round"]: line["pseudo_labels"] for line in folder.epochs()}
    rounds: list[dict[str, Any]] = [{"round": number, "pseudo_labels": count} for number, count in selected.items()]
    truth = _own_ratings(config, dataset) if any(selected.values()) else {}
    for entry in rounds if truth else ():
        entry.update(_against(truth, folder.pseudo_labels(entry["round"]), dataset))
    trained = [entry["round"] for entry in rounds if entry["round"] <= config.self_training.rounds]
    if state == "complete" and len(trained) <= config.self_training.rounds:
        skipped = {"round": len(trained), "pseudo_labels": 0, "skipped": "nothing of the pool was selected"}
        rounds.insert(len(trained), skipped)
    return rounds


def _own_ratings(config: TrialConfig, dataset: Dataset) -> dict[str, float]:
    """The scores that the pool's file has of its images, read only now that nothing is selected any more."""
    if dataset.pool is None or not dataset.pool.file.is_file():
        return {}
    try:
        ratings = read_ratings(dataset.pool.file, config.data)
    except DataError:  # a list of images, as a pool mostly is
        return {}
    if ratings.scale != dataset.scale:
        return {}
    return dict(zip(ratings.ids, ratings.scores.tolist(), strict=True))


def _against(truth: Mapping[str, float], labels: Mapping[str, float], dataset: Dataset) -> dict[str, Any]:
    """`diagnosis`: the metrics of pseudo-labels by the pool's own ratings."""
    known = [name for name in labels if name in truth]
    if not known:
        return {}
    predicted, true = ([scores[name] for name in known] for scores in (labels, truth))
    measured = metrics.evaluate(
        predicted, true, scale=dataset.scale, threshold=dataset.threshold, tail_cuts=dataset.tail_cuts
    )
    return {"diagnosis": {"images": len(known), **measured}}


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """Each split's file, rows and hash: the same model's SRCC differs by .04 between splits of AVA."""
    splits = (dataset.train, dataset.val, dataset.test, dataset.pool)
    return {split.name: describe_split(split) for split in splits if split is not None}


def describe_split(split: ImageSet) -> dict[str, Any]:
    """A split's name, file, where its rows come from, their count and hash, and how many images could not be used."""
    return {
        "split": split.name,
        "origin": split.origin,
        "file": str(split.file),
        "rows": len(split.ids),
        "hash": split.fingerprint,
        "left_out": len(split.left_out),
    }


def environment(device: str) -> dict[str, Any]:
    """Where a result was measured: versions, commit, device, threads."""
    kind = torch.device(device).type
    name = torch.cuda.get_device_name(device) if kind == "cuda" else processor()
    return {
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": versions(),
        "commit": commit(),
        "host": platform.node(),
        "process": os.getpid(),
    }


def processor() -> str:
    """The CPU's model, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of what decides numbers."""
    return {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The git commit of the source that runs, or None where it is not a checkout of its own."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():  # installed: a repository around it is another project's
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
