"""A study under NNI as it begins, goes on, or is found running; whatever cuts that off leaves no process behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.records import locked
from elta_tune.studies.completion import is_finished
from elta_tune.studies.launch import Asked, claimed, prepared
from elta_tune.studies.nni.experiment import start
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import Node, end, find_node, kill, status
from elta_tune.studies.nni.rest import NodeGone
from elta_tune.studies.nni.watcher import fault, reconcile
from elta_tune.studies.plan import StudyPlan, record_plan

if TYPE_CHECKING:
    from elta_tune.data.cache.images import Progress
    from elta_tune.data.dataset import Dataset

AT_WORK = ("RUNNING", "NO_MORE_TRIAL", "TUNER_NO_MORE_TRIAL", "STOPPING", "STOPPED", "DONE")
"""What a node says that runs an experiment to its end: not one that shows it, or was left before it began."""


@dataclass(frozen=True)
class NniRun:
    """A study that NNI runs now."""

    node: Node
    workers: Workers
    resumed: bool
    dataset: Dataset
    ended_before: str | None
    """Why it ended when nobody watched, if that is not as it should be."""


@contextmanager
def attached(nni: NniFolder) -> Iterator[None]:
    """Holds the right to start a study's node and to watch it.

    Raises:
        StudyError: another command has it, or the folder can't be written.
    """
    name, elsewhere = nni.study.name, "--runs names another place"
    hint = f"watch it: elta-tune show {name}; end it: elta-tune stop {name}"
    with locked(nni.attached_lock, f"study {name} is already running", hint, elsewhere):
        try:
            nni.create()
            yield
        finally:
            if not nni.study.exists():  # what is refused before it began leaves nothing behind
                nni.remove_empty()


def running_node(nni: NniFolder) -> Node | None:
    """The node that runs the study's trials, or None."""
    node = find_node(nni)
    return node if node is not None and status(node) in AT_WORK else None


def raise_budget(nni: NniFolder, plan: StudyPlan, node: Node) -> None:
    """Tells a running study its plan."""
    record_plan(nni.study, plan, {})
    with suppress(NodeGone):  # it is ending, which who watches will see
        node.rest.put("experiment?update_type=MAX_TRIAL_NUM", {"params": {"maxTrialNumber": plan.budget.trials}})


@contextmanager
def open_nni_run(
    asked: Asked,
    *,
    trials: int | None,
    timeout: float | None,
    workers: int | None,
    devices: Sequence[str] | None,
    cache: Path,
    port: int | None,
    preparing: AbstractContextManager[Progress],
    starting: AbstractContextManager[object],
) -> Iterator[tuple[StudyPlan, NniRun | None]]:
    """Starts a study's node, which then runs it; yields its plan, and no run where the budget is used.

    Args: as of `open_run`, and
        port: of the web UI; None takes a free one.
        starting: is entered while node starts.

    Raises:
        EltaTuneError: the study can't start or go on: why, and what to change.
    """
    folder, nni = asked.folder, NniFolder(asked.folder)
    end(nni)  # what a killed command left, which holds the study
    with claimed(folder) as lock:
        plan, resumed = asked.settled(trials, timeout, "nni"), folder.exists()
        before = fault(nni) if nni.ended() else None
        reconcile(folder, plan)
        if is_finished(folder, plan):
            yield plan, None
            return
        slots, dataset = prepared(plan, workers, devices, cache, preparing)
        asked.record(plan, "nni")
        at = Workers(slots=tuple(slots), cache=cache.absolute())
        try:
            with starting:
                node = start(folder, plan, at, port, lock)
            yield plan, NniRun(node, at, resumed, dataset, None if before is None else before.message)
        except BaseException:  # Ctrl-C, say, before the watcher hears of it
            kill(nni)
            raise
