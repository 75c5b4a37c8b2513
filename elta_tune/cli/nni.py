"""`elta-tune run --backend nni` and `elta-tune ui`."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elta_tune.cli.options import Runs, Study

if TYPE_CHECKING:
    from elta_tune.records import StudyFolder
    from elta_tune.studies.nni_node import NniFolder, Node, Workers
    from elta_tune.studies.nni_study import NniWatcher
    from elta_tune.studies.plan import StudyPlan


@dataclass(frozen=True)
class Command:
    """What `elta-tune run` was told."""

    folder: StudyFolder
    asked: StudyPlan
    budget: tuple[int | None, float | None]
    cache: Path
    workers: str
    devices: str
    port: int | None
    detach: bool
    files: dict[str, str]

    def settled(self) -> StudyPlan:
        """The study's plan as it stands now."""
        from elta_tune.studies.plan import settle

        return settle(self.folder, self.asked, *self.budget)


def run(command: Command) -> None:
    """Starts a study under NNI, goes on with it, or attaches to the one that runs."""
    from elta_tune.studies.nni_node import NniFolder, find_node, require_nni

    require_nni()
    with attached(NniFolder(command.folder)):
        node = find_node(NniFolder(command.folder))
        if node is not None and not _attach(command, node):
            return
        _start(command)


def attached(nni: NniFolder) -> ExitStack:
    """Makes sure that one command at a time watches or starts a study's node.

    Raises:
        StudyError: another one does.
    """
    from elta_tune.errors import StudyError
    from elta_tune.locks import Held, hold

    nni.create()
    stack = ExitStack()
    try:
        stack.enter_context(hold(nni.attached_lock))
    except Held as held:
        raise StudyError(
            f"study {nni.study.name} is already running (process {held.owner})",
            f"watch it: elta-tune show {nni.study.name}; end it: elta-tune stop {nni.study.name}",
        ) from None
    return stack


def _attach(command: Command, node: Node) -> bool:
    """Follows a node that runs; returns whether it ended before it heard of a raised budget, and is to start again."""
    from elta_tune.cli.text import console
    from elta_tune.studies.nni_channel import NodeGone
    from elta_tune.studies.nni_node import NniFolder
    from elta_tune.studies.plan import record_plan
    from elta_tune.studies.progress import is_finished

    plan = command.settled()
    record_plan(command.folder, plan, {})
    try:
        node.rest.put("experiment?update_type=MAX_TRIAL_NUM", {"params": {"maxTrialNumber": plan.budget.trials}})
    except NodeGone:
        pass  # it is ending, which is seen below
    console.print(f"study {command.folder.name} is running: attached to it")
    _tell_address(node)
    if command.detach:
        return False
    watch(command.folder, plan, node, NniFolder(command.folder).workers())
    return not is_finished(command.folder, plan)


def _start(command: Command) -> None:
    from elta_tune.cli.run import prepare, tell_outcome
    from elta_tune.cli.text import console
    from elta_tune.studies.nni_node import NniFolder, Workers, end
    from elta_tune.studies.nni_study import NniWatcher, start
    from elta_tune.studies.progress import is_finished

    folder, plan = command.folder, command.settled()
    workers = Workers([], command.cache.absolute())
    if folder.exists():
        end(NniFolder(folder))  # what a killed node left
        NniWatcher(folder, plan, None, workers).reconcile()
    if is_finished(folder, plan):
        console.print(f"study {folder.name} is finished: {folder.ended()} of {plan.budget.trials} trials\n")
        return tell_outcome(folder, plan)
    workers = replace(workers, slots=prepare(plan, command.cache, command.workers, command.devices, fork=False))
    with folder.lock() as lock:
        plan = command.settled()
        resumed = folder.exists()
        _record(command, plan)
        with console.status("starting NNI") if console.is_terminal else nullcontext():
            node = start(folder, plan, workers, command.port, lock)
    verb = "goes on" if resumed else "starts"
    done = f"{folder.ended()} of {plan.budget.trials} trials done"
    console.print(f"study {folder.name} {verb}: {done}, in {folder.path}", soft_wrap=True)
    _tell_address(node)
    if command.detach:
        from elta_tune.cli.run import study_argument

        name = study_argument(folder)
        console.print(f"left running; watch it: the same command; end it: elta-tune stop {name}")
        return None
    return watch(folder, plan, node, workers)


def _record(command: Command, plan: StudyPlan) -> None:
    from elta_tune.studies.plan import record_plan
    from elta_tune.trial import commit, versions

    facts: dict[str, Any] = {"study": command.folder.name, "backend": "nni", **command.files}
    record_plan(command.folder, plan, {**facts, "packages": versions(), "commit": commit()})


def _tell_address(node: Node) -> None:
    from elta_tune.cli.text import console

    console.print(f"web UI, for this user alone: {node.rest.url}\n", soft_wrap=True)


def watch(folder: StudyFolder, plan: StudyPlan, node: Node, workers: Workers) -> None:
    """Shows a running study until its end, and ends node with it."""
    from elta_tune.cli.live import Board, study_view
    from elta_tune.cli.run import tell_outcome, this_command
    from elta_tune.cli.text import console
    from elta_tune.studies.nni_study import NniWatcher

    watcher = NniWatcher(folder, plan, node, workers)
    board = Board(plan, len(workers.slots), folder.results())
    try:
        with stoppable(watcher), study_view(board, console, lambda n: folder.trial(n).epochs()) as view:
            for event in watcher.events():
                view.show(event)
    except KeyboardInterrupt:
        console.print(f"\nkilled; to go on, each trial from its last epoch:\n  {this_command()}")
        raise typer.Exit(130) from None
    tell_outcome(folder, plan)
    if watcher.stopped:
        console.print(f"stopped; to go on:\n  {this_command()}")
        raise typer.Exit(130)


class stoppable:  # noqa: N801 - a context manager, named like contextlib's
    """Ctrl-C, SIGTERM and a closed terminal ask a watcher to stop; a second one raises KeyboardInterrupt."""

    def __init__(self, watcher: NniWatcher) -> None:
        self._watcher = watcher
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup it is ignored
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, *_: object) -> None:
        if self._watcher.interrupted:
            raise KeyboardInterrupt
        self._watcher.interrupted = True


def ui(
    study: Study = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the web UI.", show_default="the first free from 8080 on")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Opens NNI's web UI on a study that NNI ran; Ctrl-C closes it. Of a running study it says the address."""
    from elta_tune.cli.text import console
    from elta_tune.errors import StudyError
    from elta_tune.records import open_study
    from elta_tune.studies.backends import backend_of
    from elta_tune.studies.nni_node import NniFolder, end, find_node, require_nni
    from elta_tune.studies.nni_study import view

    folder = open_study(study, runs)
    if backend_of(folder) != "nni":
        raise StudyError(f"study {folder.name} ran under optuna, which has no web UI", f"elta-tune show {folder.name}")
    require_nni()
    nni = NniFolder(folder)
    if (node := find_node(nni)) is not None:
        return _tell_address(node)
    with attached(nni), folder.lock() as lock:
        try:
            node = view(folder, port, lock)
            _tell_address(node)
            console.print("Ctrl-C closes it")
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            while node.is_alive:
                time.sleep(0.2)
        except KeyboardInterrupt:
            console.print("closed")
        finally:
            end(nni)
