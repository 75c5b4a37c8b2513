"""The NNI back end: starts, joins and ends the node process that runs a study, and leaves no process behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder, locked
from elta_tune.studies.backend import LaunchOptions, RunningStudy, Say, StudyRequest, WebUI
from elta_tune.studies.completion import is_finished
from elta_tune.studies.launch import prepare_study, settle_finished, stop_holder, study_lock
from elta_tune.studies.moved import moved_fields
from elta_tune.studies.nni.experiment import start, view
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import Node, end, find_node, kill, members, require_nni, status
from elta_tune.studies.nni.space import to_nni
from elta_tune.studies.nni.watcher import NniRun, fault, reconcile
from elta_tune.studies.plan import StudyPlan, read_plan
from elta_tune.studies.request import record_request, resolve_plan

if TYPE_CHECKING:
    pass

AT_WORK = ("RUNNING", "NO_MORE_TRIAL", "TUNER_NO_MORE_TRIAL", "STOPPING", "STOPPED", "DONE")
"""Statuses of a node that runs an experiment: not of one that only shows it, or never got it."""
PAUSE = 0.2
"""Seconds between looks whether the web UI has ended."""


@dataclass(frozen=True)
class NniUI:
    """NNI's web UI on a study that does not run."""

    node: Node

    @property
    def address(self) -> str:
        """Its URL, with its secret."""
        return self.node.rest.url

    def wait(self) -> None:
        """Returns when node has ended."""
        while self.node.is_alive:
            time.sleep(PAUSE)


class NniBackend:
    """Runs studies by NNI's tuners and assessors, with its web UI."""

    name = "nni"
    samplers = ("tpe", "random", "grid", "evolution")
    pruners = ("median", "none")
    has_ui = True

    def check_installed(self) -> None:
        """Looks whether NNI can run here."""
        require_nni()

    def refusals(self, plan: StudyPlan) -> Iterator[str]:
        """Why NNI can't run a plan, apart from its sampler and pruner."""
        if plan.budget.timeout is not None:
            yield "budget.timeout: NNI can't stop trials when the time is up; give a number of trials alone"
        try:
            to_nni(plan.space, plan.recipe)
        except ConfigError as error:
            yield error.message

    @contextmanager
    def launch(self, request: StudyRequest, options: LaunchOptions) -> Iterator[RunningStudy | None]:
        """Starts a study's node, or joins the one that runs; yields None where the study is finished."""
        if options.executor != "local":
            raise ConfigError(f"`executor={options.executor}`: NNI starts its trials itself", "use `backend=optuna`")
        nni = NniFolder(request.folder)
        with attached(nni):
            if (node := running_node(nni)) is not None:
                yield join(request, options, node)
                return
            end(nni)  # what a killed command left holds the study
            with study_lock(request.folder) as lock, start_study(request, options, lock) as running:
                yield running

    def find_running(self, folder: StudyFolder) -> RunningStudy | None:
        """The study as it runs now."""
        nni = NniFolder(folder)
        node = running_node(nni)
        return None if node is None else NniRun(folder, read_plan(folder), node, nni.workers())

    @contextmanager
    def open_ui(self, folder: StudyFolder, port: int | None) -> Iterator[WebUI]:
        """Shows a study that does not run in NNI's web UI."""
        nni = NniFolder(folder)
        with attached(nni):
            try:
                yield NniUI(view(folder, port))
            finally:
                end(nni)

    def stop(self, folder: StudyFolder, say: Say) -> bool:
        """Ends the command that watches the study, and node with all that it started."""
        nni = NniFolder(folder)
        try:
            watched = stop_holder(folder, nni.attached_lock, say)
        except PermissionError as error:
            raise StudyError(f"{error.filename}: {error.strerror}", "the study's owner can stop it") from None
        left = bool(members(nni))
        if left and not watched:
            say(f"stopping study {folder.name}")
        end(nni)
        if folder.is_running():
            raise StudyError(f"study {folder.name} is run by another user, or elsewhere", "it can be stopped there")
        reconcile(folder, read_plan(folder))
        return watched or left

    def check_storage(self, folder: StudyFolder, plan: StudyPlan) -> None:
        """Nothing: a study whose database is lost resumes from its folders."""

    def is_exhausted(self, folder: StudyFolder, plan: StudyPlan) -> bool:
        """Whether NNI's tuner had nothing left to propose: it repeats no point of a space."""
        ending = NniFolder(folder).ended()
        return ending is not None and ending.reason == "exhausted"


BACKEND = NniBackend()


@contextmanager
def attached(nni: NniFolder) -> Iterator[None]:
    """Holds the right to start a study's node and to watch it.

    Raises:
        StudyError: another command has it, or the folder can't be written.
    """
    name, elsewhere = nni.study.name, "`runs` names another place"
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


def join(request: StudyRequest, options: LaunchOptions, node: Node) -> NniRun:
    """A study that runs already, its budget raised to what is requested."""
    folder, workers = request.folder, NniFolder(request.folder).workers()
    if moved := moved_fields(read_plan(folder).recipe, request.plan.recipe):
        problem = f"study {folder.name} is running, and its data can't be moved: {', '.join(moved)}"
        raise StudyError(problem, f"stop it first: elta-tune stop {folder.name}")
    running = NniRun(folder, read_plan(folder), node, workers, ignored=ignored_options(options, workers, node))
    running.raise_budget(resolve_plan(request))
    return running


def ignored_options(options: LaunchOptions, workers: Workers, node: Node) -> list[str]:
    """The options that say otherwise than the study that runs already does."""
    given = {
        "workers": options.workers not in (None, len(workers.slots)),
        "devices": options.devices is not None and set(options.devices) != {slot.device for slot in workers.slots},
        "port": options.port not in (None, node.rest.port),
        "cache": options.cache.absolute() != workers.cache,
    }
    return [option for option, differs in given.items() if differs]


@contextmanager
def start_study(request: StudyRequest, options: LaunchOptions, lock: int) -> Iterator[NniRun | None]:
    """Starts a study's node, which then runs it; yields None where the study is finished.

    Args:
        lock: descriptor of the study's lock, which node inherits.
    """
    folder, nni = request.folder, NniFolder(request.folder)
    plan, resumed = resolve_plan(request), folder.exists()
    before, notes = fault(nni) if nni.ended() else None, folder.restart_damaged()
    reconcile(folder, plan)
    if is_finished(folder, plan):
        settle_finished(folder, plan, options)
        yield None
        return
    slots, dataset = prepare_study(folder, plan, options)
    record_request(request, plan, dataset)
    workers = Workers(slots=tuple(slots), cache=options.cache.absolute())
    notes += [] if before is None else [f"it had ended: {before.message}"]
    try:
        node = start(folder, plan, workers, options.port, lock)
        yield NniRun(folder, plan, node, workers, resumed, False, dataset, notes)
    except BaseException:  # Ctrl-C, say, before the watcher hears of it
        kill(nni)
        raise
