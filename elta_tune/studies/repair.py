"""Rebuilds the damaged result of a finished trial from what else its folder has, and sets a damaged database aside."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from elta_tune.errors import DamagedError, EltaTuneError, UnreadableError
from elta_tune.files import damage_errors, read_regular
from elta_tune.records import State, StudyFolder, TrialFolder, TrialResult
from elta_tune.studies.backend import backend_of
from elta_tune.studies.launch import study_lock
from elta_tune.studies.plan import StudyPlan, read_plan


def repair_study(folder: StudyFolder, cache: Path) -> Iterator[str]:
    """Repairs a study that does not run; what is sound stays as it is, and a damaged file is kept under another name.

    Args:
        cache: folder of decoded images.

    Yields:
        What was done, a line for each file.

    Raises:
        StudyError: the study runs, or its `study.yaml` or a file of it can't be read.
    """
    with study_lock(folder):
        plan = read_plan(folder)
        for number, trial in folder.trials():
            try:
                trial.result()
            except UnreadableError:
                raise
            except DamagedError as damage:
                yield f"trial {number}: {damage.message}; {_repair_result(plan, number, trial, cache)}"
        backend = backend_of(folder)
        try:
            backend.check_storage(folder, plan)
        except DamagedError as damage:
            if not damage.message.startswith(f"{folder.database}:"):
                return  # a trial's file, which is named above
            kept = _set_aside(folder.database)
            backend.check_storage(folder, plan)
            yield f"{damage.message}; kept as {kept.name}, and made again from the folders"


def _repair_result(plan: StudyPlan, number: int, trial: TrialFolder, cache: Path) -> str:
    """Rebuilds a result, or lets the trial go on if it can; returns what was done."""
    if trial.last_file.exists():
        return f"kept as {_set_aside(trial.result_file).name}: `elta-tune run` finishes the trial from its checkpoint"
    try:
        result = _rebuilt(plan, number, trial, cache)
    except EltaTuneError as error:
        return f"it can't be rebuilt: {error.message}"
    kept = _set_aside(trial.result_file)
    trial.finish(result, None)
    return f"rebuilt as {result.state}; the damaged file is kept as {kept.name}"


def _rebuilt(plan: StudyPlan, number: int, trial: TrialFolder, cache: Path) -> TrialResult:
    """The result by the trial's epochs, configuration and data.

    Raises:
        EltaTuneError: one of them is damaged or gone.
    """
    from elta_tune.data.cache.image_cache import ImageCache
    from elta_tune.data.prepare import open_dataset
    from elta_tune.provenance import environment
    from elta_tune.trial import describe_data, model_facts, rounds_of

    config, epochs = trial.config(), trial.epochs()
    best = next((record for record in epochs if record.step == epochs[-1].best_step), None)
    if best is None or trial.weights_step() != best.step:
        raise DamagedError(f"{trial.best_file}: is not of the best epoch in {trial.metrics_file.name}")
    with damage_errors(trial.result_file):
        text = read_regular(trial.result_file).decode("utf-8", "replace")
    dataset = open_dataset(config.data, ImageCache(cache))
    is_whole = epochs[-1].step >= config.planned_epochs or trial.selected_nothing(epochs[-1].round + 1)
    state = re.search(r'"state": "(complete|pruned|failed)"', text)
    reason = re.search(r'"reason": "([^"\\]*)"', text)
    ended: State = "complete" if is_whole else "pruned"
    if state is not None:
        ended = cast("State", state[1])
    others = (result.environment for result in _sound_results(trial))
    return TrialResult(
        trial=number,
        state=ended,
        reason=None if ended == "complete" else reason[1] if reason else "the reason was lost with the result",
        value=best.values.get(config.evaluation.metric),
        best_step=best.step,
        best_round=best.round,
        best_epoch=best.epoch,
        metrics=dict(itertools.takewhile(lambda item: item[0] != "loss", best.values.items())),
        params=plan.space.choose({name: config.get(name) for name in plan.space.parameters}, plan.recipe),
        rounds=rounds_of(trial, config, dataset, ended),
        seconds=epochs[-1].elapsed,
        data=describe_data(dataset),
        environment=next((known for known in others if known is not None), environment("cpu")),
        nni_trial_id=found[1] if (found := re.search(r'"nni_trial_id": "([^"\\]*)"', text)) else None,
        model=model_facts(config, dataset),
    )


def _sound_results(trial: TrialFolder) -> Iterator[TrialResult]:
    """The results of the study's other trials."""
    for _, other in StudyFolder(trial.path.parent.parent).trials():
        try:
            result = other.result()
        except DamagedError:
            continue
        if result is not None:
            yield result


def _set_aside(file: Path) -> Path:
    """Renames a damaged file to a name that is free."""
    names = (file.with_name(f"{file.name}.damaged{number or ''}") for number in itertools.count())
    free = next(name for name in names if not name.exists())
    file.replace(free)
    return free
