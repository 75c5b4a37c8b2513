"""The view of a running study: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from elta_tune.cli.study_progress import Running, StudyProgress, place_of
from elta_tune.cli.text import STATE_STYLE, columns_of, duration, metric, parameters, skipped_rounds
from elta_tune.config import TrialConfig
from elta_tune.executors import Reported
from elta_tune.records import EpochRecord, TrialResult
from elta_tune.studies.events import Event, Finished, Paused, Retried, Started, Stopping, Waiting

INDENT = 2
"""Columns before the parameters of a running trial."""
SHORTEST_BAR = 8
"""Columns below which an epoch bar says nothing."""


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

    def __init__(self, progress: StudyProgress, console: Console, epochs: Callable[[int], list[EpochRecord]]) -> None:
        self.progress, self.console, self._epochs = progress, console, epochs
        self.objective = progress.plan.space.objective.metric

    def show(self, event: Event) -> None:
        """Takes an event of the supervisor."""
        self.progress.update(event, self._epochs)
        if isinstance(event, Finished):
            style = STATE_STYLE["failed"] if event.result.state == "failed" else ""
            self._print(finished_line(event.result, self.objective), style)
        elif isinstance(event, Retried):
            self._print(f"trial {event.number:>3} resumes: {event.fault}", "yellow")
        self._show_progress(event)

    def _print(self, line: str, style: str = "") -> None:
        print_line(self.console, line, style)

    def _show_progress(self, event: Event) -> None:
        if isinstance(event, Started):
            verb = "goes on " if event.resumed else "starts  "
            self._print(f"trial {event.job.number:>3} {verb}  {parameters(event.job.params)}")
        elif isinstance(event, Reported):
            self._print(epoch_line(self.progress.running[event.number], self.objective))
        elif isinstance(event, Paused):
            self._print(f"trial {event.number:>3} is saved, to go on from there")
        elif isinstance(event, Finished | Stopping | Waiting):
            self._print(f"          {self.progress.summary()}")


class LiveView(View):
    """Shows the running trials in place, and ended ones as lines above."""

    def __init__(self, progress: StudyProgress, console: Console, epochs: Callable[[int], list[EpochRecord]]) -> None:
        super().__init__(progress, console, epochs)
        # It is drawn with each event, and there is one each quarter of a second: a thread of its own would draw a
        # table that changes meanwhile.
        self._width = console.width
        self.live = Live(console=console, get_renderable=self.render, auto_refresh=False, transient=True)

    def show(self, event: Event) -> None:
        """Takes an event of the supervisor."""
        self._follow_width()
        super().show(event)

    def _show_progress(self, event: Event) -> None:
        self.live.refresh()

    def _follow_width(self) -> None:
        """Erases the rows that a terminal adds when it is made narrower: it wraps the lines that are on it."""
        width = self.console.width
        if width < self._width:
            options = self.console.options.update(width=self._width)
            drawn = self.console.render_lines(self.render(), options, pad=False)
            rows = sum(max(1, math.ceil(Segment.get_line_length(line) / width)) for line in drawn)
            erased = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * (rows - len(drawn))
            self.console.control(Control(ControlType.CARRIAGE_RETURN, *erased))
        self._width = width

    def render(self) -> RenderableType:
        """The live part: as much of each running trial as the terminal has lines for, then best and summary."""
        progress, width = self.progress, self.console.width
        footer: list[RenderableType] = [Text(progress.summary(), no_wrap=True, overflow="ellipsis")]
        if (best := progress.best) is not None:
            values = "  ".join(f"{name} {metric(best.metrics.get(name))}" for name in columns_of(self.objective))
            line = f"best: trial {best.trial}  {values}"
            footer.insert(0, Text(line, style="green", no_wrap=True, overflow="ellipsis"))
        running = list(progress.running.values())
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
    progress: StudyProgress, console: Console, epochs: Callable[[int], list[EpochRecord]], *, is_live: bool = True
) -> Iterator[View]:
    """The view that fits the console."""
    if not (is_live and console.is_terminal):
        yield View(progress, console, epochs)
        return
    view = LiveView(progress, console, epochs)
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
