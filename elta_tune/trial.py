"""One trial: the full ELTA training of a recipe, recorded in a folder and reported as it goes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.dataset import Dataset, ImageSet, Split
from elta_tune.data.prepare import open_dataset
from elta_tune.data.readers import read_ratings
from elta_tune.errors import DataError, OutOfMemoryError, TrialError
from elta_tune.method import metrics
from elta_tune.method.scores import method_bins
from elta_tune.provenance import environment
from elta_tune.records import (
    EpochRecord,
    ModelFacts,
    RoundRecord,
    SavedEpoch,
    SplitRecord,
    State,
    TrialFolder,
    TrialResult,
)
from elta_tune.space.parameters import Value
from elta_tune.training.devices import device_of
from elta_tune.training.predict import Predictions
from elta_tune.training.self_training import Epoch, self_training_rounds
from elta_tune.training.state import from_plain

if TYPE_CHECKING:
    import pandas as pd

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")
"""What allocators say: CUDA and MPS; the CPU; cuBLAS and cuDNN."""


class TrialPruned(Exception):
    """The pruner stopped the trial."""


class TrialStopped(Exception):
    """The study pauses; the trial will be resumed."""


class Reporter(Protocol):
    """Receives the epochs of a trial."""

    def report(self, record: EpochRecord) -> None:
        """Takes an epoch after it was saved.

        Raises:
            TrialPruned: the trial is to end here.
            TrialStopped: the trial is to pause here.
        """
        ...


class NoReporter:
    """Ignores the epochs: a trial without a study."""

    def report(self, record: EpochRecord) -> None:
        """Does nothing."""


def run_trial(
    config: TrialConfig,
    folder: TrialFolder,
    reporter: Reporter,
    *,
    cache: ImageCache,
    device: str = "cpu",
    number: int | None = None,
    params: Mapping[str, Value] | None = None,
    nni_trial_id: str | None = None,
) -> TrialResult:
    """Trains a recipe to its end, or resumes from the checkpoint in the folder.

    Each epoch is saved, then recorded, then reported: a trial that is pruned or killed loses nothing.

    Args:
        cache: of the decoded images.
        number, params: what a study calls the trial and what it varies, for `result.json`.
        nni_trial_id: the same of NNI.

    Returns:
        The content of `result.json`: the state is complete, pruned or failed (loss not finite, out of memory).

    Raises:
        TrialStopped: as the reporter said.
        EltaTuneError: data, model or folder do not allow the training to start.
    """
    trial = trial_epochs(
        config, folder, cache=cache, device=device, number=number, params=params, nni_trial_id=nni_trial_id
    )
    try:
        record = next(trial)
        while True:
            try:
                reporter.report(record)
            except Exception as error:  # a verdict, or a fault, is one of the training that waits there
                record = trial.throw(error)
            else:
                record = next(trial)
    except StopIteration as end:
        result: TrialResult = end.value
        return result
    finally:
        trial.close()


def trial_epochs(
    config: TrialConfig,
    folder: TrialFolder,
    *,
    cache: ImageCache,
    device: str = "cpu",
    number: int | None = None,
    params: Mapping[str, Value] | None = None,
    nni_trial_id: str | None = None,
) -> Generator[EpochRecord, None, TrialResult]:
    """`run_trial` without a reporter: yields each epoch to a caller, who throws in `TrialPruned` or `TrialStopped`."""
    folder.create(config)
    if (earlier := folder.result()) is not None:
        folder.clear()
        return earlier
    dataset = open_dataset(config.data, cache)
    resume = folder.resume_point()
    started = time.monotonic() - (resume.record.elapsed if resume else 0.0)
    state, reason = yield from _train(config, dataset, folder, resume, device=device, cache=cache, started=started)
    saved = folder.checkpoint()
    if saved is not None:  # a verdict that comes as a signal may have come between save and append
        folder.append(saved.record)
    if state != "failed" and saved is not None and math.isnan(saved.best.value):
        state = "failed"
        reason = f"{config.evaluation.metric} is not a number in any epoch: the predictions are constant or not finite"
    result = replace(
        _outcome(saved, state, reason),
        trial=number,
        params=dict(params or {}),
        rounds=rounds_of(folder, config, dataset, state),
        seconds=time.monotonic() - started,
        data=describe_data(dataset),
        environment=environment(device),
        nni_trial_id=nni_trial_id,
        model=model_facts(config, dataset),
    )
    folder.finish(result, _predictions(saved))
    return folder.result() or result


def _train(
    config: TrialConfig,
    dataset: Dataset,
    folder: TrialFolder,
    resume: SavedEpoch | None,
    *,
    device: str,
    cache: ImageCache,
    started: float,
) -> Generator[EpochRecord, None, tuple[State, str | None]]:
    """Trains, saves, records and yields each epoch; returns how it ended, and why if it ended early."""
    goes_on_from = None if resume is None else resume.state
    try:
        with out_of_memory_errors():
            if resume is not None:
                folder.append(resume.record)
                yield resume.record
            for epoch in self_training_rounds(config, dataset, device_of(device), resume=goes_on_from, cache=cache):
                record = _record(epoch, time.monotonic() - started)
                pseudo_labels = None if epoch.selection is None else epoch.selection.to_frame()
                folder.save(record, epoch.checkpoint, epoch.weights, pseudo_labels)
                folder.append(record)
                yield record
    except TrialPruned:
        return "pruned", "worse than other trials at this step"
    except TrialError as error:
        return "failed", error.message
    return "complete", None


def record_failure(
    folder: TrialFolder, reason: str, number: int, params: Mapping[str, Value], *, nni_trial_id: str | None = None
) -> None:
    """Writes the `result.json` of a trial that could not write its own, with what its checkpoint has.

    Raises:
        StudyError: it has a result that can't be read; one that can be read stays as it is.
    """
    if folder.result() is not None:
        return
    try:
        saved = folder.checkpoint()
    except Exception:  # a checkpoint that can't be read may be the very fault
        saved = None
    epochs = folder.epochs()
    result = replace(
        _outcome(saved, "failed", reason),
        trial=number,
        params=dict(params),
        seconds=epochs[-1].elapsed if epochs else 0.0,
        nni_trial_id=nni_trial_id,
    )
    folder.finish(result, _predictions(saved))


def _outcome(saved: SavedEpoch | None, state: State, reason: str | None) -> TrialResult:
    """How a trial ended and what its best epoch reached, whose weights are in the folder; the rest is empty."""
    best = None if saved is None else saved.best
    return TrialResult(
        trial=None,
        state=state,
        reason=reason,
        value=best.value if best else None,
        best_step=best.step if best else None,
        best_round=best.round if best else None,
        best_epoch=best.epoch if best else None,
        metrics=best.metrics if best else {},
        params={},
        rounds=(),
        seconds=0.0,
    )


def _predictions(saved: SavedEpoch | None) -> pd.DataFrame | None:
    """The validation predictions of the best epoch."""
    return None if saved is None else from_plain(Predictions, saved.state["best"]["predictions"]).to_frame()


@contextlib.contextmanager
def out_of_memory_errors(hint: str | None = None) -> Iterator[None]:
    """Raises an OutOfMemoryError for each of the errors that allocators raise; others keep their traceback."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (known or any(words in text.lower() for words in OUT_OF_MEMORY)):
            raise
        raise OutOfMemoryError(f"out of memory: {text.partition(chr(10))[0] or type(error).__name__}", hint) from error


def _record(epoch: Epoch, elapsed: float) -> EpochRecord:
    values = {**epoch.metrics, **epoch.training}
    return EpochRecord(epoch.step, epoch.round, epoch.epoch, epoch.best.step, values, elapsed)


def rounds_of(folder: TrialFolder, config: TrialConfig, dataset: Dataset, state: State) -> tuple[RoundRecord, ...]:
    """How many pseudo-labels each self-training round had, and how good they were if the pool has ratings after all.

    The rounds that a complete trial lacks had nothing to train on.
    """
    counts = {record.round: record.pseudo_labels for record in folder.epochs()}
    truth = _own_ratings(config, dataset) if any(counts.values()) else {}
    rounds = []
    for number, count in counts.items():
        diagnosis = _diagnosis(truth, folder.pseudo_labels(number), dataset) if truth else None
        rounds.append(RoundRecord(number, count, diagnosis=diagnosis))
    trained = sum(number <= config.self_training.rounds for number in counts)
    if state == "complete" and trained <= config.self_training.rounds:
        rounds.insert(trained, RoundRecord(trained, 0, skipped="nothing of the pool was selected"))
    return tuple(rounds)


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


def _diagnosis(
    truth: Mapping[str, float], labels: Mapping[str, float], dataset: Dataset
) -> dict[str, float | None] | None:
    """The metrics of pseudo-labels by the pool's own ratings, or None if no image has both."""
    known = [name for name in labels if name in truth]
    if not known:
        return None
    predicted, true = ([scores[name] for name in known] for scores in (labels, truth))
    measured = metrics.evaluate(
        predicted,
        true,
        scale=dataset.scale,
        threshold=dataset.threshold,
        tail_cuts=dataset.tail_cuts,
        higher_is_better=dataset.higher_is_better,
    )
    return {"images": len(known), **measured}


def model_facts(config: TrialConfig, dataset: Dataset) -> ModelFacts:
    """What the output of a model that is trained on a data set means."""
    bins = dataset.bins if config.model.head == "emd" else None
    ratings = None if bins is None else tuple(method_bins(bins, dataset.scale).tolist())
    return ModelFacts(ratings, dataset.scale, dataset.threshold, dataset.tail_cuts, dataset.higher_is_better)


def describe_data(dataset: Dataset) -> dict[str, SplitRecord]:
    """Each split's file, rows and hash: the same model's SRCC differs by .04 between splits of AVA."""
    splits = (dataset.train, dataset.val, dataset.test, dataset.pool)
    return {split.name: describe_split(split) for split in splits if split is not None}


def describe_split(split: ImageSet) -> SplitRecord:
    """A split's name, where its rows come from, their count and hash, and how many images could not be used."""
    return SplitRecord(
        split=split.name,
        origin=split.origin,
        file=str(split.file),
        rows=len(split.ids),
        hash=split.fingerprint,
        left_out=len(split.left_out),
        unlabelled=split.unlabelled if isinstance(split, Split) else 0,
    )
