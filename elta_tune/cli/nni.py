"""`elta-tune run --backend nni` and `elta-tune ui`."""

from __future__ import annotations

import signal
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elta_tune.cli.options import Runs, Study

if TYPE_CHECKING:
    from elta_tune.records import StudyFolder
    from elta_tune.studies.launch import Asked
    from elta_tune.studies.nni.folder import Workers
    from elta_tune.studies.nni.node import Node
    from elta_tune.studies.plan import StudyPlan


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

    def kept_from(self, workers: Workers, node: Node) -> list[str]:
        """Its options that a study that runs already does not follow."""
        from elta_tune.cli.run import wanted_slots

        names, count = wanted_slots(self.workers, self.devices)
        given = {
            "--workers": count not in (None, len(workers.slots)),
            "--devices": names is not None and set(names) != {slot.device for slot in workers.slots},
            "--port": self.port not in (None, node.rest.port),
            "--cache": self.cache.absolute() != workers.cache,
        }
        return [option for option, differs in given.items() if differs]


def run(command: Command) -> None:
    """Starts a study under NNI, goes on with it, or attaches to the one that runs."""
    from elta_tune.cli.run import to_be_continued
    from elta_tune.studies.nni.backend import attached, running_node
    from elta_tune.studies.nni.folder import NniFolder
    from elta_tune.studies.nni.node import require_nni

    require_nni()
    command.plan()  # is refused here, before a folder is made
    nni = NniFolder(command.folder)
    with to_be_continued(), attached(nni):
        node = running_node(nni)
        if node is not None and not _attach(command, node):
            return
        _start(command)


def _attach(command: Command, node: Node) -> bool:
    """Follows a node that runs; returns whether it ended before it heard of a raised budget, and is to start again."""
    from elta_tune.cli.text import console
    from elta_tune.studies.completion import is_finished
    from elta_tune.studies.nni.backend import raise_budget
    from elta_tune.studies.nni.folder import NniFolder

    plan, nni = command.plan(), NniFolder(command.folder)
    workers = nni.workers()
    raise_budget(nni, plan, node)
    console.print(f"study {command.folder.name} is running: attached to it", soft_wrap=True)
    if kept := command.kept_from(workers, node):
        console.print(f"note: {', '.join(kept)}: as it was started; to change that, stop it first", style="yellow")
    _tell_address(node)
    if command.detach:
        return False
    watch(command.folder, plan, node, workers)
    return not is_finished(command.folder, plan)


def _start(command: Command) -> None:
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.run import study_argument, tell_finished, tell_prepared, wanted_slots
    from elta_tune.cli.text import command as typed
    from elta_tune.cli.text import console, errors
    from elta_tune.studies.nni.backend import open_nni_run

    folder, (names, count) = command.folder, wanted_slots(command.workers, command.devices)
    opened = open_nni_run(
        command.asked,
        trials=command.trials,
        timeout=command.timeout,
        workers=count,
        devices=names,
        cache=command.cache,
        port=command.port,
        preparing=preparing(console),
        starting=console.status("starting NNI") if console.is_terminal else nullcontext(),
    )
    with opened as (plan, ready):
        if ready is None:
            return tell_finished(folder, plan)
        tell_prepared(plan, ready.dataset, ready.workers.slots)
        if ready.ended_before:
            told = f"note: it had ended: {ready.ended_before}"
            errors.print(told, style="yellow", soft_wrap=True)
        done = f"{folder.ended()} of {plan.budget.trials} trials done"
        verb = "goes on" if ready.resumed else "starts"
        console.print(f"study {folder.name} {verb}: {done}, in {folder.path}", soft_wrap=True)
        _tell_address(ready.node)
        if not command.detach:
            return watch(folder, plan, ready.node, ready.workers)
    stop = typed("stop", study_argument(folder))
    console.print(f"left running; to watch it: the same command; to end it: {stop}", soft_wrap=True)
    return None


def _tell_address(node: Node) -> None:
    from elta_tune.cli.text import console

    console.print(f"web UI, for this user alone: {node.rest.url}\n", soft_wrap=True)


def watch(folder: StudyFolder, plan: StudyPlan, node: Node, workers: Workers) -> None:
    """Shows a running study until its end, and ends node with it."""
    from elta_tune.cli.live import Board, study_view
    from elta_tune.cli.run import tell_outcome
    from elta_tune.cli.text import console, this_command
    from elta_tune.studies.events import interruptible
    from elta_tune.studies.nni.watcher import NniWatcher

    watcher = NniWatcher(folder, plan, node, workers.cache)
    board = Board(plan, len(workers.slots), folder.results())
    view_of = study_view(board, console, lambda number: folder.trial(number).epochs())
    # A closed terminal, too, stops what was not left running by --detach.
    with interruptible(watcher, *_hang_up()), view_of as view, closing(watcher.events()) as events:
        for event in events:
            view.show(event)
    tell_outcome(folder, plan)
    if watcher.stopped:
        console.print(f"stopped; to go on:\n  {this_command()}", soft_wrap=True)
        raise typer.Exit(130)


def _hang_up() -> tuple[signal.Signals, ...]:
    """The signal of a terminal that closes, unless nohup has it ignored."""
    return () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)


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
    from elta_tune.studies.backend import backend_of
    from elta_tune.studies.nni.backend import attached, running_node
    from elta_tune.studies.nni.experiment import view
    from elta_tune.studies.nni.folder import NniFolder
    from elta_tune.studies.nni.node import end, require_nni

    folder = open_study(study, runs)
    if backend_of(folder) != "nni":
        raise StudyError(f"study {folder.name} ran under optuna, which has no web UI", command("show", folder.name))
    require_nni()
    nni = NniFolder(folder)
    if (node := running_node(nni)) is not None:
        return _tell_address(node)
    with attached(nni):
        # A shell in the background has switched the first one off; of the terminal's end nohup has.
        for number in (signal.SIGINT, signal.SIGTERM, *_hang_up()):
            signal.signal(number, signal.default_int_handler)
        try:
            node = view(folder, port)
            _tell_address(node)
            console.print("Ctrl-C closes it")
            while node.is_alive:
                time.sleep(0.2)
        except KeyboardInterrupt:
            console.print("closed")
        finally:
            end(nni)
