"""`elta-tune run --backend nni` and `elta-tune ui`."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elta_tune.cli.options import Runs, Study

if TYPE_CHECKING:
    from elta_tune.records import StudyFolder
    from elta_tune.studies.nni_folder import NniFolder, Workers
    from elta_tune.studies.nni_node import Node
    from elta_tune.studies.plan import StudyPlan
    from elta_tune.studies.start import Asked


@dataclass(frozen=True)
class Command:
    """What `elta-tune run` was told."""

    asked: Asked
    trials: int | None
    timeout: float | None
    cache: Path
    workers: str
    devices: str
    port: int | None
    detach: bool

    @property
    def folder(self) -> StudyFolder:
        """The study's."""
        return self.asked.folder

    def plan(self) -> StudyPlan:
        """The study's plan as it stands now.

        Raises:
            ConfigError: NNI can't run it.
        """
        return self.asked.settled(self.trials, self.timeout, "nni")


def run(command: Command) -> None:
    """Starts a study under NNI, goes on with it, or attaches to the one that runs."""
    from elta_tune.cli.run import to_be_continued
    from elta_tune.studies.nni_folder import NniFolder
    from elta_tune.studies.nni_node import end, find_node, require_nni
    from elta_tune.studies.start import claimed

    require_nni()
    command.plan()  # is refused here, before a folder is made
    nni = NniFolder(command.folder)
    with attached(nni), to_be_continued():
        node = find_node(nni)
        if node is not None and not _attach(command, node):
            return
        end(nni)  # what a killed node left
        with claimed(command.folder) as lock:
            _start(command, lock)


@contextmanager
def attached(nni: NniFolder) -> Iterator[None]:
    """Holds the right to start a study's node and to watch it.

    Raises:
        StudyError: another command has it.
    """
    from elta_tune.cli.text import command
    from elta_tune.errors import StudyError
    from elta_tune.locks import Held, hold

    nni.create()
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(nni.attached_lock))
        except Held as held:
            raise StudyError(
                f"study {nni.study.name} is already running (process {held.owner})",
                f"watch it: {command('show', nni.study.name)}; end it: {command('stop', nni.study.name)}",
            ) from None
        try:
            yield
        finally:
            if not nni.study.exists():  # what is refused before it began leaves nothing behind
                shutil.rmtree(nni.path)
                with suppress(OSError):
                    nni.study.path.rmdir()


def _attach(command: Command, node: Node) -> bool:
    """Follows a node that runs; returns whether it ended before it heard of a raised budget, and is to start again."""
    from elta_tune.cli.text import console
    from elta_tune.studies.nni_channel import NodeGone
    from elta_tune.studies.nni_folder import NniFolder
    from elta_tune.studies.plan import record_plan
    from elta_tune.studies.progress import is_finished

    plan = command.plan()
    record_plan(command.folder, plan, {})
    with suppress(NodeGone):  # it is ending, which is seen below
        node.rest.put("experiment?update_type=MAX_TRIAL_NUM", {"params": {"maxTrialNumber": plan.budget.trials}})
    console.print(f"study {command.folder.name} is running: attached to it", markup=False, soft_wrap=True)
    _tell_address(node)
    if command.detach:
        return False
    watch(command.folder, plan, node, NniFolder(command.folder).workers())
    return not is_finished(command.folder, plan)


def _start(command: Command, lock: int) -> None:
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.run import study_argument, tell_finished, tell_prepared, wanted_slots
    from elta_tune.cli.text import command as typed
    from elta_tune.cli.text import console
    from elta_tune.studies.nni_folder import Workers
    from elta_tune.studies.nni_study import reconcile, start
    from elta_tune.studies.progress import is_finished

    folder, plan = command.folder, command.plan()
    reconcile(folder, plan)
    if is_finished(folder, plan):
        return tell_finished(folder, plan)
    names, count = wanted_slots(command.workers, command.devices)
    with preparing(console) as progress:
        from elta_tune.studies.preflight import choose_slots, preflight_study, record_start

        slots = choose_slots(names, count)
        dataset = preflight_study(plan, slots, command.cache, progress)
    tell_prepared(plan, dataset, slots)
    workers = Workers(slots, command.cache.absolute())
    verb = "goes on" if folder.exists() else "starts"
    record_start(folder, plan, command.asked.files, "nni")
    with console.status("starting NNI") if console.is_terminal else nullcontext():
        node = start(folder, plan, workers, command.port, lock)
    done = f"{folder.ended()} of {plan.budget.trials} trials done"
    console.print(f"study {folder.name} {verb}: {done}, in {folder.path}", markup=False, soft_wrap=True)
    _tell_address(node)
    if command.detach:
        stop = typed("stop", study_argument(folder))
        console.print(f"left running; to watch it: the same command; to end it: {stop}", markup=False, soft_wrap=True)
        return None
    return watch(folder, plan, node, workers)


def _tell_address(node: Node) -> None:
    from elta_tune.cli.text import console

    console.print(f"web UI, for this user alone: {node.rest.url}\n", soft_wrap=True)


def watch(folder: StudyFolder, plan: StudyPlan, node: Node, workers: Workers) -> None:
    """Shows a running study until its end, and ends node with it."""
    from elta_tune.cli.live import Board, study_view
    from elta_tune.cli.run import tell_outcome
    from elta_tune.cli.text import console, this_command
    from elta_tune.studies.nni_study import NniWatcher
    from elta_tune.studies.supervisor import interruptible

    watcher = NniWatcher(folder, plan, node, workers.cache)
    board = Board(plan, len(workers.slots), folder.results())
    view_of = study_view(board, console, lambda number: folder.trial(number).epochs())
    # A closed terminal, too, stops what was not left running by --detach; under nohup that signal is ignored.
    hang_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
    with interruptible(watcher, *hang_up), view_of as view, closing(watcher.events()) as events:
        for event in events:
            view.show(event)
    tell_outcome(folder, plan)
    if watcher.stopped:
        console.print(f"stopped; to go on:\n  {this_command()}", markup=False, soft_wrap=True)
        raise typer.Exit(130)


def ui(
    study: Study = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of the web UI.", show_default="the first free from 8080 on")
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Opens NNI's web UI on a study that NNI ran; Ctrl-C closes it. Of a running study it says the address."""
    from elta_tune.cli.text import command, console
    from elta_tune.errors import StudyError
    from elta_tune.records import open_study
    from elta_tune.studies.backends import backend_of
    from elta_tune.studies.nni_folder import NniFolder
    from elta_tune.studies.nni_node import end, find_node, require_nni
    from elta_tune.studies.nni_study import view

    folder = open_study(study, runs)
    if backend_of(folder) != "nni":
        raise StudyError(f"study {folder.name} ran under optuna, which has no web UI", command("show", folder.name))
    require_nni()
    nni = NniFolder(folder)
    if (node := find_node(nni)) is not None:
        return _tell_address(node)
    with attached(nni), folder.lock() as lock:
        for number in (signal.SIGINT, signal.SIGTERM):  # a shell in the background has switched the first one off
            signal.signal(number, signal.default_int_handler)
        try:
            node = view(folder, port, lock)
            _tell_address(node)
            console.print("Ctrl-C closes it")
            while node.is_alive:
                time.sleep(0.2)
        except KeyboardInterrupt:
            console.print("closed")
        finally:
            end(nni)
