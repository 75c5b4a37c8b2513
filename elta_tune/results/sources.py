"""Where a model comes from: an exported file, a checkpoint of ELTA's released code, or a trial."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.config import load_recipe
from elta_tune.errors import ConfigError, ModelError, StudyError
from elta_tune.records import StudyFolder, TrialFolder, TrialResult, open_study
from elta_tune.results.ranking import best_result
from elta_tune.studies.plan import read_plan

if TYPE_CHECKING:  # `train` looks for a trial long before it needs torch
    from elta_tune.models.checkpoint import Checkpoint
    from elta_tune.models.released import Head


@dataclass(frozen=True)
class FoundTrial:
    """A trial on disk: of a study, or a single one of `elta-tune train`."""

    folder: TrialFolder
    study: str | None

    @property
    def name(self) -> str:
        """A short name, for files made of it."""
        return self.folder.path.name if self.study is None else f"{self.study}-{int(self.folder.path.name)}"

    def result(self) -> TrialResult:
        """`result.json`.

        Raises:
            StudyError: the trial has not ended.
        """
        result = self.folder.result()
        if result is None:
            raise StudyError(f"{self.folder.path}: the trial has not ended", "the same command resumes it")
        return result


def load_model(reference: str, runs: Path, head: Head | None = None) -> Checkpoint:
    """The model of a file, an exported folder, or a trial (see `find_trial`).

    Args:
        head: which one to take of a released checkpoint, which holds both; any other model has to have it.

    Raises:
        ConfigError: there is no such head.
        ModelError: the file holds no model that is known here, or another head.
        StudyError: there is no such file, study or trial, or its weights are gone.
    """
    if head not in (None, "emd", "mse"):
        raise ConfigError(f"`head={head}`: should be emd or mse")
    checkpoint = _load(reference, runs, head)
    if head not in (None, own := checkpoint.config.model.head):
        hint = "`head` chooses in checkpoints of ELTA's released code, which hold both"
        raise ModelError(f"{reference}: has an {own} head, and no other", hint)
    return checkpoint


def _load(reference: str, runs: Path, head: Head | None) -> Checkpoint:
    path = Path(reference)
    if (path.is_file() and _trial_at(path) is None) or (path / "config.json").is_file():
        from elta_tune.models.load import load_model_file

        return load_model_file(path, head)
    trial = find_trial(reference, runs)
    return checkpoint_of_trial(trial.folder, trial.result(), trial.study)


def find_trial(reference: str, runs: Path) -> FoundTrial:
    """A trial by `STUDY:NUMBER`; by `STUDY`, its best one; or by its folder, or its weights there.

    Raises:
        StudyError: there is none, or two.
    """
    path = Path(reference)
    if (folder := _trial_at(path)) is not None:
        return FoundTrial(folder, _study_of(folder.path))
    name, number = _split(reference, runs)
    try:
        study = open_study(name, runs)
    except StudyError as error:
        missing = "is not a trial" if path.exists() else "there is no such file or trial"
        raise StudyError(f"{reference}: {missing}, and {error.message}", error.hint) from None
    chosen = int(number) if number else best_result(study, read_plan(study)).trial or 0
    folder = study.trial(chosen)
    if not folder.config_file.is_file():
        raise StudyError(f"study {study.name} has no trial {chosen}", f"see them: elta-tune show {study.name}")
    return FoundTrial(folder, study.name)


def _split(reference: str, runs: Path) -> tuple[str, str]:
    """The study and the number of `STUDY:NUMBER`. Studies of earlier versions may have names of that form.

    Raises:
        StudyError: both a study of that name and that trial exist.
    """
    name, colon, number = reference.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]+", number):
        return reference, ""
    if not _exists(reference, runs):
        return name, number
    if Path(reference).name == reference and _exists(name, runs):  # a path is what it says
        raise StudyError(
            f"{reference}: names a study and trial {int(number)} of study {name}",
            f"name a folder: {runs / reference}, or {StudyFolder(runs / name).trial(int(number)).path}",
        )
    return reference, ""


def _exists(study: str, runs: Path) -> bool:
    return any(StudyFolder(path).exists() for path in (Path(study), runs / study))


def _trial_at(path: Path) -> TrialFolder | None:
    """The trial in a folder, or the one whose weights or last checkpoint a file is."""
    inside, around = TrialFolder(path.absolute()), TrialFolder(path.absolute().parent)
    if inside.config_file.is_file():
        return inside
    is_own = inside.path in (around.best_file, around.last_file) and around.config_file.is_file()
    return around if is_own else None


def _study_of(trial: Path) -> str | None:
    study = StudyFolder(trial.parent.parent)
    return study.name if trial.parent.name == "trials" and study.exists() else None


def checkpoint_of_trial(trial: TrialFolder, result: TrialResult, study: str | None) -> Checkpoint:
    """The checkpoint of a trial's best epoch.

    Raises:
        StudyError: its weights are gone or damaged, or it has none.
        ModelError: those of its frozen backbone are gone, or have changed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from elta_tune.models.checkpoint import Checkpoint, bins_of
    from elta_tune.training.head import with_frozen_backbone

    name = "the trial" if result.trial is None else f"trial {result.trial}"
    if result.model is None or result.best_step is None:  # without an epoch there are no weights
        raise StudyError(f"{trial.path}: {name} {result.state}: {result.reason}")
    try:
        state = load_file(trial.best_file)
    except (OSError, SafetensorError) as error:
        raise StudyError(f"{trial.best_file}: the weights of {name} can't be read: {error}") from error
    model, config, content = result.model, load_recipe(trial.config_file), result.to_dict()
    bins = bins_of(config, content["model"])
    return Checkpoint(
        state_dict=with_frozen_backbone(state, config, bins) if config.model.freeze else state,
        config=config,
        metrics=dict(result.metrics),
        epoch=result.best_epoch,
        bins=bins,
        scale=model.scale,
        threshold=model.threshold,
        tail_cuts=model.tail_cuts,
        source={key: content[key] for key in ("trial", "value", "best_step", "best_round", "params", "data")}
        | {"study": study, "environment": content["environment"]},
        path=trial.best_file,
    )
