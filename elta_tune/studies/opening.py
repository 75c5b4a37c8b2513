"""A study of Optuna's as it begins, or goes on: its plan on disk, its database open, its executor ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from elta_tune.executors.local import LocalExecutor, Slot
from elta_tune.records import StudyFolder
from elta_tune.studies.optuna_study import OptunaStudy
from elta_tune.studies.plan import StudyPlan
from elta_tune.studies.preflight import record_start
from elta_tune.studies.supervisor import Supervisor


def open_supervisor(
    folder: StudyFolder, plan: StudyPlan, files: Mapping[str, str], slots: Sequence[Slot], cache: Path
) -> Supervisor:
    """The supervisor that runs the study in slots of this machine, once its events are asked for.

    Raises:
        StudyError: its database can't be opened.
    """
    record_start(folder, plan, files, "optuna")
    return Supervisor(OptunaStudy(folder, plan, cache.absolute()), LocalExecutor(slots))


def tell_all(folder: StudyFolder, plan: StudyPlan, cache: Path) -> None:
    """Tells a finished study's database the results that a kill kept from it."""
    OptunaStudy(folder, plan, cache.absolute()).unfinished()
