"""The folder of a study."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from elta_tune.errors import StudyError
from elta_tune.files import damage_errors, write_text
from elta_tune.locks import is_held, owner
from elta_tune.records.result import TrialResult
from elta_tune.records.trial_folder import TrialFolder, locked
from elta_tune.suggestions import did_you_mean

NUMBER = re.compile("[0-9]{4}|[1-9][0-9]{4,9}")
"""A trial's folder."""


class StudyFolder:
    """One study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study_file = path / "study.yaml"
        self.database = path / "study.db"
        self.lock_file = path / "study.lock"

    @property
    def name(self) -> str:
        """The folder's name is the study's."""
        return self.path.name

    def exists(self) -> bool:
        """Whether a study was started here.

        Raises:
            StudyError: its folder can't be looked into.
        """
        with damage_errors(self.study_file):
            return self.study_file.exists()

    def create(self, study_yaml: str) -> None:
        """Makes the folder with its `study.yaml`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.study_file, study_yaml)

    def trial(self, number: int) -> TrialFolder:
        """The folder of a trial, which need not exist."""
        return TrialFolder(self.path / "trials" / f"{number:04d}")

    def trials(self) -> list[tuple[int, TrialFolder]]:
        """All trials that have a folder, by number; what has another name is not a trial."""
        paths = ((self.path / "trials").iterdir()) if (self.path / "trials").is_dir() else ()
        numbers = sorted(int(path.name) for path in paths if NUMBER.fullmatch(path.name) and path.is_dir())
        return [(number, self.trial(number)) for number in numbers]

    def restart_damaged(self) -> list[str]:
        """Makes each unfinished trial with a damaged saved state start again; returns a line for each.

        Raises:
            StudyError: a file can't be read, or the result of a trial is damaged.
        """
        trials = ((number, folder) for number, folder in self.trials() if folder.result() is None)
        lines = ((number, folder.restart_if_damaged()) for number, folder in trials)
        return [f"trial {number}: {line}" for number, line in lines if line is not None]

    def results(self) -> list[TrialResult]:
        """`result.json` of all finished trials, by number."""
        return [result for _, folder in self.trials() if (result := folder.result()) is not None]

    def used_budget(self) -> int:
        """How many trials count toward the budget."""
        return sum(result.uses_budget for result in self.results())

    def lock(self) -> contextlib.AbstractContextManager[int]:
        """Holds the study for one supervisor; yields the lock's descriptor, which a child may inherit.

        Raises:
            StudyError: another one holds it, or the folder can't be written.
        """
        watch = f"watch it: elta-tune show {self.name}" if self.exists() else f"end it: elta-tune stop {self.name}"
        hint = f"{watch}; or start another study: `name=NAME`"
        return locked(self.lock_file, f"study {self.name} is already running", hint, "`runs` names another place")

    def is_running(self) -> bool:
        """Whether a supervisor holds the study now.

        Raises:
            StudyError: its lock can't be read.
        """
        with damage_errors(self.lock_file):
            return is_held(self.lock_file)

    def is_preparing(self) -> bool:
        """Whether a supervisor holds the study and has not started it yet: it decodes images, say."""
        return not self.exists() and self.lock_file.is_file() and self.is_running()


def find_studies(runs: Path) -> list[StudyFolder]:
    """All studies in a folder of runs that one may look into, the last changed last.

    Raises:
        StudyError: the folder of runs itself can't be looked at.
    """
    return sorted(_folders_with("study.yaml", runs), key=lambda study: (_last_change(study), study.name))


def preparing_studies(runs: Path) -> list[StudyFolder]:
    """All studies in a folder of runs that are not started yet, by name."""
    return [study for study in _folders_with("study.lock", runs) if study.is_preparing()]


def _folders_with(file: str, runs: Path) -> list[StudyFolder]:
    with damage_errors(runs):
        return [StudyFolder(path.parent) for path in sorted(runs.glob(f"*/{file}"))]


def open_study(name: str | None, runs: Path, *, preparing: bool = False) -> StudyFolder:
    """A study by its folder or its name under `runs`; left out, the last one.

    Args:
        preparing: also by its name one that is not started yet.

    Raises:
        StudyError: there is none, it is not started yet, or it can't be read.
    """
    studies = find_studies(runs)
    if name is None:
        if not studies:
            for study in preparing_studies(runs):
                raise _not_started(study)
            raise StudyError(f"there is no study in {runs}", "start one: elta-tune run")
        return studies[-1]
    for path in (Path(name), runs / name):
        study = StudyFolder(path.absolute())
        if study.exists() or (preparing and study.is_preparing()):
            return study
        if study.is_preparing():
            raise _not_started(study)
    names = [study.name for study in studies]
    listing = f"there are: {', '.join(names)}" if names else None
    raise StudyError(f"there is no study {name!r} in {runs}{did_you_mean(name, names)}", listing)


def _not_started(study: StudyFolder) -> StudyError:
    problem = f"study {study.name} is being prepared ({owner(study.lock_file) or 'another process'})"
    return StudyError(problem, f"wait until it starts; or end it: elta-tune stop {study.name}")


def _last_change(study: StudyFolder) -> float:
    files = [study.study_file, study.database, *(folder.metrics_file for _, folder in study.trials())]
    # os.path's returns False without permission: opening the study reports the error
    return max((file.stat().st_mtime for file in files if os.path.exists(file)), default=0.0)
