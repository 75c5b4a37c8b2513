"""What one sees while a study runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elta_tune.cli.text import STATE_STYLE, columns_of, duration, metric, parameters, skipped_rounds
from elta_tune.config import TrialConfig
from elta_tune.executors import Job, Reported
from elta_tune.records import EpochRecord, TrialResult
from elta_tune.studies.completion import trials_wanted
from elta_tune.studies.events import Event, Finished, Paused, Retried, Started, Stopping
from elta_tune.studies.plan import StudyPlan

INDENT = 2
"""Columns before the parameters of a running trial."""
SHORTEST_BAR = 8
"""Columns below which an epoch bar says nothing."""


@dataclass
class Running:
    """A trial on its way; `last` is its last epoch."""

    job: Job
    since: float
    last: EpochRecord | None = None
    best: float | None = None

    @property
    def place(self) -> str:
        """``round 1  epoch 2/3``."""
        return place_of(self.job.config, self.last)

    def value(self, name: str) -> float | None:
        """A metric of the last epoch."""
        return None if self.last is None else self.last.value(name)


def place_of(config: TrialConfig, record: EpochRecord | None) -> str:
    """Where an epoch stands: the round, if there are several, and the epoch within it."""
    round, epoch = (record.round, record.epoch) if record else (0, 0)
    stage = "head  " if round > config.self_training.rounds else f"round {round}  "
    return (stage if config.epochs_of(1) else "") + f"epoch {epoch}/{config.epochs_of(round)}"


@dataclass
class Board:
    """The state of a study, from its events."""

    plan: StudyPlan
    workers: int
    results: list[TrialResult]
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    running: dict[int, Running] = field(default_factory=dict)
    stopping: str | None = None

    def __post_init__(self) -> None:
        self.wanted = trials_wanted(self.plan)

    def update(self, event: Event, epochs: Callable[[int], list[EpochRecord]]) -> None:
        """Takes an event; `epochs` reads what a resumed trial did before."""
        if isinstance(event, Started):
            running = self.running[event.job.number] = Running(event.job, time.monotonic())
            for line in epochs(event.job.number) if event.resumed else ():
                self._heard(running, line)
        elif isinstance(event, Reported):
            self._heard(self.running[event.number], event.record)
        elif isinstance(event, Finished):
            self.running.pop(event.result.trial or 0)
            self.results.append(event.result)
        elif isinstance(event, Paused):
            del self.running[event.number]
        elif isinstance(event, Stopping):
            self.stopping = event.reason

    def _heard(self, running: Running, record: EpochRecord) -> None:
        running.last, objective = record, self.plan.space.objective
        if objective.is_better(value := record.value(objective.metric), running.best):
            running.best = value

    def count(self, state: str) -> int:
        """How many trials ended so."""
        return sum(result.state == state for result in self.results)

    @property
    def ended(self) -> int:
        """Trials that count toward the budget."""
        return self.count("complete") + self.count("pruned")

    @property
    def best(self) -> TrialResult | None:
        """The best complete trial so far."""
        best, is_better = None, self.plan.space.objective.is_better
        for result in self.results:
            if result.state == "complete" and (best is None or is_better(result.value, best.value)):
                best = result
        return best

    @property
    def seconds_left(self) -> float | None:
        """A guess from the trials so far, None before the first epoch and at the end."""
        now = time.monotonic()
        lengths = [result.seconds for result in self.results if result.uses_budget]
        if not lengths:
            lengths = [_whole_length(each.job.config, each.last) for each in self.running.values() if each.last]
        if not lengths or self.ended >= self.wanted:
            return None
        length = sum(lengths) / len(lengths)
        trials = self.wanted - self.ended
        spent = sum(min(now - running.since, length) for running in self.running.values())
        left: float = max(trials * length - spent, 0.0) / max(1, min(self.workers, trials))
        timeout = self.plan.budget.timeout
        return left if timeout is None else min(left, max(0.0, timeout - self.seconds_before - (now - self.started)))

    @property
    def progress(self) -> str:
        """``3 of 12 trials``."""
        return f"{self.ended} of {self.wanted} trials"

    def summary(self) -> str:
        """One line: how far, how many pruned and failed, time left or why it stops."""
        told = [self.progress]
        told += [f"{self.count(state)} {state}" for state in ("pruned", "failed") if self.count(state)]
        if self.stopping == "interrupted":
            told.append("stopping after this epoch; Ctrl-C kills")
        elif self.stopping == "timeout":
            told.append("time is up: stopping after this epoch")
        elif self.stopping == "fault":
            told.append("can't go on: stopping after this epoch")
        elif self.stopping == "now":
            told.append("stopping; Ctrl-C kills")
        elif (left := self.seconds_left) is not None:
            told.append(f"about {duration(left)} left")
        return " · ".join(told)


def _whole_length(config: TrialConfig, last: EpochRecord) -> float:
    """Seconds that a trial takes, if its other epochs take as long as those so far."""
    return last.elapsed / max(last.step, 1) * config.planned_epochs


def finished_line(result: TrialResult, objective: str) -> str:
    """How a trial ended, with its metrics, in one line."""
    if result.state == "failed":
        return f"trial {result.trial:>3} failed    {result.reason}"
    values = "  ".join(f"{name} {metric(result.metrics.get(name))}" for name in columns_of(objective))
    where = f"step {result.best_step}" if result.best_step else ""
    rest = [values, where, duration(result.seconds), *skipped_rounds(result)]
    return "  ".join([f"trial {result.trial:>3} {result.state:<8}", *rest])


def epoch_line(running: Running, objective: str) -> str:
    """A running trial in one line."""
    now = metric(running.value(objective))
    return f"trial {running.job.number:>3}  {running.place}  {objective} {now}  best {metric(running.best)}"


def print_line(console: Console, line: str, style: str = "") -> None:
    """Prints what happened: in a log in one line, in a terminal, which would break it within a word, between words."""
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal)


class View:
    """Shows the events of a study as plain lines: for logs, and where there is no terminal."""

    def __init__(self, board: Board, console: Console, epochs: Callable[[int], list[EpochRecord]]) -> None:
        self.board, self.console, self._epochs = board, console, epochs
        self.objective = board.plan.space.objective.metric

    def show(self, event: Event) -> None:
        """Takes an event of the supervisor."""
        self.board.update(event, self._epochs)
        if isinstance(event, Finished):
            style = STATE_STYLE["failed"] if event.result.state == "failed" else ""
            self._print(finished_line(event.result, self.objective), style)
        elif isinstance(event, Retried):
            self._print(f"trial {event.number:>3} goes on again: {event.fault}", "yellow")
        self._show_progress(event)

    def _print(self, line: str, style: str = "") -> None:
        print_line(self.console, line, style)

    def _show_progress(self, event: Event) -> None:
        if isinstance(event, Started):
            verb = "goes on " if event.resumed else "starts  "
            self._print(f"trial {event.job.number:>3} {verb}  {parameters(event.job.params)}")
        elif isinstance(event, Reported):
            self._print(epoch_line(self.board.running[event.number], self.objective))
        elif isinstance(event, Paused):
            self._print(f"trial {event.number:>3} is saved, to go on from there")
        elif isinstance(event, Finished | Stopping):
            self._print(f"          {self.board.summary()}")


class LiveView(View):
    """Shows the running trials in place, and ended ones as lines above."""

    def __init__(self, board: Board, console: Console, epochs: Callable[[int], list[EpochRecord]]) -> None:
        super().__init__(board, console, epochs)
        # It is drawn with each event, and there is one each quarter of a second: a thread of its own would draw a
        # board that changes meanwhile.
        self.live = Live(console=console, get_renderable=self.render, auto_refresh=False, transient=True)

    def _show_progress(self, event: Event) -> None:
        self.live.refresh()

    def render(self) -> RenderableType:
        """The live part: as much of each running trial as the terminal has lines for, then best and summary."""
        board, width = self.board, self.console.width
        footer: list[RenderableType] = [Text(board.summary(), no_wrap=True, overflow="ellipsis")]
        if (best := board.best) is not None:
            values = "  ".join(f"{name} {metric(best.metrics.get(name))}" for name in columns_of(self.objective))
            line = f"best: trial {best.trial}  {values}"
            footer.insert(0, Text(line, style="green", no_wrap=True, overflow="ellipsis"))
        running = list(board.running.values())
        room = max(self.console.height - len(footer) - 2, 1)  # a line above, and the cursor's
        details = [Text(parameters(trial.job.params), style="dim") for trial in running]
        heights = [len(text.wrap(self.console, max(width - INDENT, 1))) for text in details]
        if sum(heights) + len(running) > room:
            details = [Text(text.plain, style="dim", no_wrap=True, overflow="ellipsis") for text in details]
        shown = running if len(running) <= room else running[: room - 1]
        rows: list[RenderableType] = []
        for trial, text in zip(shown, details, strict=False):
            rows.append(self._row(trial, shown))
            if 2 * len(running) <= room:
                rows.append(Padding(text, (0, 0, 0, INDENT)))
        if len(shown) < len(running):
            rows.append(Text(f"… and {len(running) - len(shown)} more running"))
        return Group(Text(), *rows, *footer)

    def _row(self, trial: Running, all_shown: Sequence[Running]) -> RenderableType:
        """Number, round, epoch, a bar where there is room for one, and values, in columns that agree between rows."""
        number = f"trial {trial.job.number:>{max(len(str(other.job.number)) for other in all_shown)}}"
        place = f"{trial.place:<{max(len(other.place) for other in all_shown)}}"
        values = f"{self.objective} {metric(trial.value(self.objective)):>6}  best {metric(trial.best):>6}"
        if len(number) + len(place) + len(values) + 6 + SHORTEST_BAR > self.console.width:
            return Text(f"{number}  {place}  {values}", no_wrap=True, overflow="ellipsis")
        bar = ProgressBar(total=trial.job.config.planned_epochs, completed=trial.last.step if trial.last else 0)
        row = Table.grid(padding=(0, 2), expand=True)
        for cell in (cells := (number, place, bar, values)):
            row.add_column(no_wrap=True, ratio=1 if cell is bar else None)
        row.add_row(*cells)
        return row


@contextmanager
def study_view(
    board: Board, console: Console, epochs: Callable[[int], list[EpochRecord]], *, is_live: bool = True
) -> Iterator[View]:
    """The view that fits the console."""
    if not (is_live and console.is_terminal):
        yield View(board, console, epochs)
        return
    view = LiveView(board, console, epochs)
    with view.live:
        yield view


class EpochLines:
    """Prints each epoch of a trial without a study."""

    def __init__(self, console: Console, config: TrialConfig) -> None:
        self.console, self.config = console, config

    def show(self, record: EpochRecord) -> None:
        """Prints an epoch; a star marks the best so far."""
        names = columns_of(self.config.evaluation.metric)
        values = "  ".join(f"{name} {metric(record.value(name))}" for name in names)
        place, speed = place_of(self.config, record), f"{record.value('images_per_second'):.0f}/s"
        star = " *" if record.best_step == record.step else ""
        print_line(self.console, f"{place}  loss {record.value('loss'):.4f}  {values}  {speed}{star}")
