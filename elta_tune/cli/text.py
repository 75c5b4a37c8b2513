"""How values look in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, soft_wrap=False)
errors = Console(stderr=True, highlight=False)

HEADLINE = ("srcc", "plcc", "accuracy")
"""What every trial shows."""
STATE_STYLE = {"complete": "green", "pruned": "yellow", "failed": "red"}


def number(value: Any, digits: int = 4) -> str:
    """A metric or a parameter, briefly; null is what is not a number."""
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}g}"


def metric(value: float | None) -> str:
    """A metric in four decimals."""
    return "–" if value is None or value != value else f"{value:.4f}"


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


def columns_of(objective: str) -> list[str]:
    """Metrics that a table of trials shows: the objective, if it is another one, and the headline."""
    return list(dict.fromkeys((objective, *HEADLINE)))


def trial_table(results: Sequence[Mapping[str, Any]], objective: str, title: str | None = None) -> Table:
    """Trials as rows: number, state, metrics at the best epoch, parameters."""
    metrics = columns_of(objective)
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("trial", justify="right")
    table.add_column("state")
    for name in metrics:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold", ratio=1)
    for result in results:
        values = [metric(result["metrics"].get(name)) for name in metrics]
        state = result["state"]
        told = f"[red]{result['reason']}[/]" if state == "failed" else parameters(result["params"])
        table.add_row(str(result["trial"]), f"[{STATE_STYLE[state]}]{state}[/]", *values, told)
    return table


def plain_table(headers: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table in the house's style."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in headers:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table
