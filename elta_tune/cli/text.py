"""How values look in a terminal."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from elta_tune.cli.output import as_typed, printable
from elta_tune.records import EpochRecord, TrialResult

HEADLINE = ("srcc", "plcc", "accuracy")
"""What every trial shows."""
ERRORS = ("mae", "bmae", "std_ratio")
"""What the best trial shows besides: its error, its error with all scores counted alike, and how far it is squeezed."""
STATE_STYLE = {"complete": "green", "pruned": "yellow", "failed": "red"}


class SafeConsole(Console):
    """A console that takes no markup, and shows a terminal's escapes as text."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string with its escapes as text, before anything measures how wide it is."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of what is shown."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


console = SafeConsole()
errors = SafeConsole(stderr=True)


def say(text: str, style: str = "") -> None:
    """Prints a text, which the terminal breaks where it must."""
    console.print(Text(text, style=style), soft_wrap=True)


def note(text: str, style: str = "yellow") -> None:
    """Prints a note on standard error."""
    errors.print(Text(f"note: {as_typed(text)}", style=style), soft_wrap=True)


def number(value: Any, digits: int = 4) -> str:
    """A metric or a parameter, briefly; null is what is not a number, and booleans are as YAML has them."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}g}"


def metric(value: float | None) -> str:
    """A metric in four decimals."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def parameters(params: Mapping[str, Any]) -> str:
    """Parameters by their short names: ``lr=0.003  alpha=2``. A name that two share stays whole."""
    leaves = [name.rpartition(".")[2] for name in params]
    short = [leaf if leaves.count(leaf) == 1 else name for name, leaf in zip(params, leaves, strict=True)]
    return "  ".join(f"{name}={number(value, 3)}" for name, value in zip(short, params.values(), strict=True))


def duration(seconds: float | None) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 12 min``, ``2 d 3 h``."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    for name, size, lower, unit in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // unit
            return f"{whole // size} {name} {rest} {lower}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def counts(results: Sequence[TrialResult]) -> str:
    """``12 trials: 8 complete, 4 pruned; 3 min of training``."""
    states = [result.state for result in results]
    by_state = ", ".join(f"{states.count(state)} {state}" for state in STATE_STYLE if state in states)
    plural = "s" if len(results) > 1 else ""
    return (
        f"{len(results)} trial{plural}: {by_state}; {duration(sum(result.seconds for result in results))} of training"
    )


def command(*words: str) -> str:
    """A command to type: as this one was, by `uv run` or from an activated environment."""
    return shlex.join([*(["uv", "run"] if "UV" in os.environ else []), "elta-tune", *words])


def this_command() -> str:
    """The command that runs."""
    return command(*sys.argv[1:])


def columns_of(objective: str) -> list[str]:
    """Metrics that a table of trials shows: the objective, if it is another one, and the headline."""
    return list(dict.fromkeys((objective, *HEADLINE)))


def main_metrics(objective: str) -> list[str]:
    """The objective, and the five metrics that say most: by rank, by side, by distance, and in the tails."""
    return [objective, *[name for name in (*HEADLINE, *ERRORS) if name != objective][:5]]


def trial_table(results: Sequence[TrialResult], objective: str) -> RenderableType:
    """Trials: number, state, metrics at the best epoch; below each its parameters, which need the whole width."""
    metrics = columns_of(objective)
    heads = ["trial", "state   ", *(f"{name:>6}" for name in metrics), "step", "time"]
    lines: list[RenderableType] = [Text("  ".join(heads), style="bold"), Rule(style="dim", characters="─")]
    for result in results:
        values = [f"{metric(result.metrics.get(name)):>{max(6, len(name))}}" for name in metrics]
        state = Text(f"{result.state:<8}", style=STATE_STYLE[result.state])
        step = "–" if result.best_step is None else str(result.best_step)
        rest = "  ".join([*values, f"{step:>4}", duration(result.seconds)])
        lines.append(Text.assemble(f"{result.trial:>5}  ", state, f"  {rest}"))
        if result.state == "failed":
            lines.append(Padding(Text(result.reason or "", style="red"), (0, 0, 0, 7), expand=False))
        lines += [Padding(Text(line), (0, 0, 0, 7), expand=False) for line in skipped_rounds(result)]
        lines.append(Padding(Text(parameters(result.params), style="dim"), (0, 0, 0, 7), expand=False))
    return Group(*lines)


def skipped_rounds(result: TrialResult) -> list[str]:
    """``round 1 skipped: nothing of the pool was selected``, where a trial trained no further."""
    return [f"round {each.round} skipped: {each.skipped}" for each in result.rounds if each.skipped]


def diagnosed_rounds(result: TrialResult) -> list[str]:
    """``round 1: by the pool's own ratings of 113 pseudo-labels: srcc 0.6123, mae 0.4021``, where it has any."""
    lines = []
    for each in result.rounds:
        if found := each.diagnosis:
            values = ", ".join(f"{name} {metric(found.get(name))}" for name in ("srcc", "mae"))
            lines.append(
                f"round {each.round}: by the pool's own ratings of {found.get('images', 0):g} pseudo-labels: {values}"
            )
    return lines


def epoch_table(epochs: Sequence[EpochRecord], objective: str) -> RenderableType:
    """The epochs of a trial, the best one in green."""
    metrics = columns_of(objective)
    heads = ["step", "round", "epoch", "  loss", "      lr", *(f"{name:>6}" for name in metrics), "pseudo"]
    lines: list[RenderableType] = [Text("  ".join(heads), style="bold"), Rule(style="dim", characters="─")]
    for record in epochs:
        place = [f"{record.step:>4}", f"{record.round:>5}", f"{record.epoch:>5}"]
        losses = [f"{metric(record.value('loss')):>6}", f"{number(record.values.get('lr'), 3):>8}"]
        values = [f"{metric(record.value(name)):>{max(6, len(name))}}" for name in metrics]
        is_best = record.step == epochs[-1].best_step
        cells = [*place, *losses, *values, f"{record.pseudo_labels:>6}"]
        lines.append(Text("  ".join(cells), style="green" if is_best else ""))
    return Group(*lines)


def plain_table(headers: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table in the house's style."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in headers:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table
