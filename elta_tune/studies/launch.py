"""What a study is asked to be, the claim on its folder, and its start under Optuna."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elta_tune.config import load_recipe
from elta_tune.documents import find_document, shown
from elta_tune.errors import ConfigError
from elta_tune.records import StudyFolder
from elta_tune.space.check import load_space
from elta_tune.studies.backend import check_plan
from elta_tune.studies.completion import is_finished
from elta_tune.studies.plan import StudyPlan, make_plan, record_plan, settle

if TYPE_CHECKING:
    from elta_tune.data.cache.images import Progress
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot
    from elta_tune.studies.optuna.supervisor import Supervisor


@dataclass(frozen=True)
class Asked:
    """A study that is asked for, which may be there already; `files` names its space and recipe."""

    folder: StudyFolder
    plan: StudyPlan
    files: dict[str, str]

    def settled(self, trials: int | None, timeout: float | None, backend: str) -> StudyPlan:
        """The plan that the study goes on with.

        Raises:
            StudyError: the study was started with another configuration or a larger budget.
            ConfigError: the back end can't run it.
        """
        plan = settle(self.folder, self.plan, trials, timeout)
        check_plan(plan, backend)
        return plan

    def record(self, plan: StudyPlan, backend: str) -> None:
        """Writes `study.yaml` with what is told of the run that starts it; of one that goes on, its raised budget."""
        from elta_tune.trial import commit, versions

        facts = {"study": self.folder.name, "backend": backend, **self.files}
        record_plan(self.folder, plan, {**facts, "packages": versions(), "commit": commit()})


def ask(
    space: str,
    recipe: str,
    overrides: Mapping[str, Any],
    *,
    seed: int | None,
    name: str | None,
    runs: Path,
    backend: str | None = None,
) -> Asked:
    """Reads what a study is asked to be. If no name is given, it is `SPACE-RECIPE`, or `SPACE-RECIPE-nni` under NNI.

    Raises:
        ConfigError: a file is missing or wrong, the space does not fit the recipe, or the name is none.
    """
    recipe_file, space_file = find_document(recipe, "trials"), find_document(space, "search_spaces")
    config = load_recipe(recipe_file, {**overrides, **({} if seed is None else {"seed": seed})})
    plan = make_plan(load_space(space_file, config), config)
    if name is None:
        name = "-".join([space_file.stem, recipe_file.stem, *(["nni"] if backend == "nni" else [])])
    if not name or Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"--name {shown(name)}: should be a plain name; --runs says in which folder")
    folder = StudyFolder((runs / name).absolute())
    return Asked(folder, plan, {"space_file": str(space_file), "recipe_file": str(recipe_file)})


@contextmanager
def claimed(folder: StudyFolder) -> Iterator[int]:
    """Holds the study for this process; yields its lock. What is refused before it began leaves nothing behind.

    Raises:
        StudyError: another process holds it, or its folder can't be written.
    """
    with folder.lock() as lock:
        try:
            yield lock
        finally:
            if not folder.exists():
                folder.lock_file.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.path.rmdir()


@dataclass(frozen=True)
class Run:
    """A study that is ready: its trials start when `supervisor.events()` is asked for."""

    resumed: bool
    slots: Sequence[Slot]
    dataset: Dataset
    supervisor: Supervisor


def prepared(
    plan: StudyPlan,
    workers: int | None,
    devices: Sequence[str] | None,
    cache: Path,
    preparing: AbstractContextManager[Progress],
) -> tuple[list[Slot], Dataset]:
    """Where a study's trials run and what on, looked at before any does; the arguments are `open_run`'s."""
    with preparing as progress:
        from elta_tune.studies.preflight import choose_slots, preflight_study  # which import torch

        slots = choose_slots(devices, workers)
        return slots, preflight_study(plan, slots, cache, progress)


@contextmanager
def open_run(
    asked: Asked,
    *,
    trials: int | None,
    timeout: float | None,
    workers: int | None,
    devices: Sequence[str] | None,
    cache: Path,
    preparing: AbstractContextManager[Progress],
) -> Iterator[tuple[StudyPlan, Run | None]]:
    """Holds a study of Optuna's and makes it ready to run; yields its plan, and no run where the budget is used.

    Args:
        trials, timeout: the budget, in seconds the time, where another than the space's.
        workers: trials at a time; None: one per device.
        devices: their names; None: every GPU, or else the CPU.
        cache: folder of decoded images.
        preparing: is entered before what takes long, and yields what hears how far that is.

    Raises:
        EltaTuneError: the study can't start or go on: why, and what to change.
    """
    folder = asked.folder
    with claimed(folder):
        plan, resumed = asked.settled(trials, timeout, "optuna"), folder.exists()
        if is_finished(folder, plan):
            from elta_tune.studies.optuna.study import OptunaStudy

            OptunaStudy(folder, plan, cache.absolute()).unfinished()  # tells its database what a kill kept from it
            yield plan, None
            return
        from elta_tune.executors.local import LocalExecutor, start_forkserver

        start_forkserver()  # which imports what trials need while this process does
        slots, dataset = prepared(plan, workers, devices, cache, preparing)
        from elta_tune.studies.optuna.study import OptunaStudy
        from elta_tune.studies.optuna.supervisor import Supervisor

        asked.record(plan, "optuna")
        supervisor = Supervisor(OptunaStudy(folder, plan, cache.absolute()), LocalExecutor(slots))
        yield plan, Run(resumed, slots, dataset, supervisor)
