"""What one sees while a study runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elta_tune.cli.text import HEADLINE, STATE_STYLE, columns_of, duration, metric, parameters
from elta_tune.executors import Job, Reported
from elta_tune.studies.plan import StudyPlan
from elta_tune.studies.supervisor import Event, Finished, Retried, Started, Stopping


@dataclass
class Running:
    """A trial on its way; `last` is its last line of metrics."""

    job: Job
    since: float
    last: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = None

    @property
    def place(self) -> str:
        """``round 1  epoch 2/3``."""
        config, round, epoch = self.job.config, self.last.get("round", 0), self.last.get("epoch", 0)
        epochs = config.self_training.epochs if round else config.training.epochs
        return (f"round {round}  " if config.self_training.rounds else "") + f"epoch {epoch}/{epochs}"


@dataclass
class Board:
    """The state of a study, from its events."""

    plan: StudyPlan
    workers: int
    results: list[dict[str, Any]]
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    running: dict[int, Running] = field(default_factory=dict)
    stopping: str | None = None

    def update(self, event: Event, epochs: Callable[[int], list[dict[str, Any]]]) -> None:
        """Takes an event; `epochs` reads what a resumed trial did before."""
        if isinstance(event, Started):
            running = self.running[event.job.number] = Running(event.job, time.monotonic())
            for line in epochs(event.job.number) if event.resumed else ():
                self._heard(running, line)
        elif isinstance(event, Reported):
            self._heard(self.running[event.number], event.metrics)
        elif isinstance(event, Finished):
            del self.running[event.result["trial"]]
            self.results.append(event.result)
        elif isinstance(event, Stopping):
            self.stopping = event.reason

    def _heard(self, running: Running, line: Mapping[str, Any]) -> None:
        value = line[self.plan.space.objective.metric]
        running.last = line
        if value is not None and (running.best is None or self._beats(value, running.best)):
            running.best = value

    def _beats(self, value: float, other: float) -> bool:
        return value > other if self.plan.space.objective.towards == "maximize" else value < other

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(result["state"] == state for result in self.results)

    @property
    def ended(self) -> int:
        """Trials that count toward the budget."""
        return self.count("complete") + self.count("pruned")

    @property
    def best(self) -> dict[str, Any] | None:
        """The best complete trial so far."""
        best = None
        for result in self.results:
            if result["state"] == "complete" and (best is None or self._beats(result["value"], best["value"])):
                best = result
        return best

    @property
    def seconds_left(self) -> float | None:
        """A guess from the trials so far, None before the first epoch."""
        now = time.monotonic()
        spent = [now - running.since for running in self.running.values()]
        lengths = [result["seconds"] for result in self.results if result["state"] != "failed"]
        if not lengths:
            reported = [running for running in self.running.values() if running.last]
            lengths = [
                running.last["elapsed"] / running.last["step"] * running.job.config.planned_epochs
                for running in reported
            ]
        if not lengths:
            return None
        length = sum(lengths) / len(lengths)
        work = (self.plan.budget.trials - self.ended) * length - sum(min(seconds, length) for seconds in spent)
        left: float = max(work, 0.0) / self.workers
        timeout = self.plan.budget.timeout
        return left if timeout is None else min(left, max(0.0, timeout - self.seconds_before - (now - self.started)))

    def summary(self) -> str:
        """One line: how far, how many pruned and failed, time left."""
        told = [f"{self.ended} of {self.plan.budget.trials} trials"]
        told += [f"{self.count(state)} {state}" for state in ("pruned", "failed") if self.count(state)]
        if self.stopping == "interrupted":
            told.append("stopping after the running epochs (Ctrl-C again kills)")
        elif self.stopping == "timeout":
            told.append("time is up: stopping after the running epochs")
        elif self.stopping == "now":
            told.append("stopping; each trial goes on from its last epoch (Ctrl-C again kills)")
        else:
            left = self.seconds_left
            told += [f"about {duration(left)} left"] if left else []
        return " · ".join(told)


def finished_line(result: Mapping[str, Any], objective: str) -> str:
    """How a trial ended, with its metrics, in one line."""
    if result["state"] == "failed":
        return f"trial {result['trial']:>3} failed    {result['reason']}"
    values = "  ".join(f"{name} {metric(result['metrics'].get(name))}" for name in columns_of(objective))
    where = f"step {result['best_step']}" if result["best_step"] else ""
    return f"trial {result['trial']:>3} {result['state']:<8}  {values}  {where}  {duration(result['seconds'])}"


def epoch_line(running: Running, objective: str) -> str:
    """A running trial in one line."""
    now = metric(running.last.get(objective))
    return f"trial {running.job.number:>3}  {running.place}  {objective} {now}  best {metric(running.best)}"


class View:
    """Shows the events of a study as plain lines: for logs, and where there is no terminal."""

    def __init__(self, board: Board, console: Console, epochs: Callable[[int], list[dict[str, Any]]]) -> None:
        self.board, self.console, self._epochs = board, console, epochs

    def show(self, event: Event) -> None:
        """Takes an event of the supervisor."""
        self.board.update(event, self._epochs)
        objective = self.board.plan.space.objective.metric
        if isinstance(event, Finished):
            style = STATE_STYLE[event.result["state"]] if event.result["state"] == "failed" else ""
            self._print(finished_line(event.result, objective), style)
            self._after_finished()
        elif isinstance(event, Retried):
            self._print(f"trial {event.number:>3} goes on again: {event.fault}", "yellow")
        else:
            self._show_progress(event, objective)

    def _print(self, line: str, style: str = "") -> None:
        self.console.print(Text(line, style=style), soft_wrap=True)

    def _after_finished(self) -> None:
        self._print(f"          {self.board.summary()}")

    def _show_progress(self, event: Event, objective: str) -> None:
        if isinstance(event, Started):
            verb = "goes on " if event.resumed else "starts  "
            self._print(f"trial {event.job.number:>3} {verb}  {parameters(event.job.params)}")
        elif isinstance(event, Reported):
            self._print(epoch_line(self.board.running[event.number], objective))
        elif isinstance(event, Stopping):
            self._print(self.board.summary())


class LiveView(View):
    """Shows the running trials in place, and ended ones as lines above."""

    def __init__(self, board: Board, console: Console, epochs: Callable[[int], list[dict[str, Any]]]) -> None:
        super().__init__(board, console, epochs)
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def _after_finished(self) -> None:
        """The summary is always in sight."""

    def _show_progress(self, event: Event, objective: str) -> None:
        """Progress is always in sight."""

    def render(self) -> RenderableType:
        """The live part."""
        objective = self.board.plan.space.objective.metric
        rows: list[RenderableType] = [self._row(running, objective) for running in self.board.running.values()]
        best = self.board.best
        line = Text(self.board.summary())
        if best is not None:
            values = "  ".join(f"{name} {metric(best['metrics'].get(name))}" for name in columns_of(objective))
            rows.append(Text(f"best: trial {best['trial']}  {values}", style="green"))
        return Group(Text(), *rows, line)

    def _row(self, running: Running, objective: str) -> RenderableType:
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        total = running.job.config.planned_epochs
        bar = ProgressBar(total=total, completed=running.last.get("step", 0))
        now, best = metric(running.last.get(objective)), metric(running.best)
        row.add_row(f"trial {running.job.number}", running.place, bar, f"{objective} {now}  best {best}")
        return Group(row, Padding(Text(parameters(running.job.params), style="dim"), (0, 0, 0, 2)))


@contextmanager
def study_view(board: Board, console: Console, epochs: Callable[[int], list[dict[str, Any]]]) -> Iterator[View]:
    """The view that fits the console."""
    if not console.is_terminal:
        yield View(board, console, epochs)
        return
    view = LiveView(board, console, epochs)
    with view.live:
        yield view


@contextmanager
def preparing(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar for each part of the preparation of data; yields what takes (done, total, what)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
                if not console.is_terminal:
                    console.print(f"{what}: {total}")
            progress.update(tasks[what], completed=done)

        yield show


class EpochLines:
    """A reporter that prints each epoch: for a trial without a study."""

    def __init__(self, console: Console, number: int = 0) -> None:
        self.console = console

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Prints; never prunes."""
        values = "  ".join(f"{name} {metric(metrics[name])}" for name in HEADLINE)
        place = f"round {metrics['round']}  epoch {metrics['epoch']}"
        best = "  *" if metrics["best_step"] == step else ""
        loss, speed = f"loss {metrics['loss']:.4f}", f"{metrics['images_per_second']:.0f} images/s"
        self.console.print(Text(f"{place}  {loss}  {values}  {speed}{best}"), soft_wrap=True)
