"""How data sets and the cache look in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from elta_tune.cli.text import console, duration, plain_table
from elta_tune.data.cache.inventory import Entry
from elta_tune.data.cache.progress import size_text
from elta_tune.errors import plural

BAR = 30
"""Widest bar of the histogram, in characters."""
EIGHTHS = " ▏▎▍▌▋▊▉"


def show_check(content: Mapping[str, Any]) -> None:
    """The content of `api.check_data`: splits, histogram, duplicate images, images left out."""
    splits = content["splits"]
    console.print(_splits_table(splits))
    for name, split in splits.items():
        console.print(Text(f"{name:<6} {split['file']}"), soft_wrap=True)
        part = split["origin"].removeprefix(Path(split["file"]).name).removeprefix(", ")
        facts = filter(None, [split["format"], part, f"hash {split['hash']}"])
        console.print(Padding(Text("; ".join(facts), style="dim"), (0, 0, 0, 7), expand=False))
    if content["tail_cuts"] is not None:
        console.print(_histogram(content))
    for line in _remarks(content):
        console.print(line, soft_wrap=True)
    if content["ok"]:
        looked = all(split["images"] for split in splits.values())
        console.print(Text("a study can start" if looked else "the labels are fine", style="green"))


def _splits_table(splits: Mapping[str, Any]) -> Table:
    looked = any(split["images"] for split in splits.values())
    heads = ["split", "rows", *(["missing", "unreadable", "duplicate"] if looked else []), "votes", "MOS", "std"]
    table = plain_table(heads, right=heads[1:])
    for name, split in splits.items():
        images, votes, mos = split["images"], split["votes"], split["mos"]
        counts = [images["missing"], images["unreadable"], split["twice"]] if images else []
        table.add_row(
            name,
            f"{split['rows']:,}",
            *("–" if count is None else f"{count:,}" for count in counts),
            "–" if votes is None else " … ".join(f"{votes[key]:g}" for key in ("min", "median", "max")),
            *(["–", "–"] if mos is None else [f"{mos['mean']:.3f}", f"{mos['std']:.3f}"]),
        )
    return table


def _histogram(content: Mapping[str, Any]) -> Table:
    """The MOS of the labelled splits, with where the tails of the training images begin."""
    counts = {name: split["histogram"] for name, split in content["splits"].items() if split["histogram"]}
    edges, (low, high) = content["histogram_edges"], content["tail_cuts"]
    filled = [part for part in range(len(edges) - 1) if any(column[part] for column in counts.values())]
    largest = max(counts["train"])
    bottom, top = ("low", "high") if content["higher_is_better"] else ("high", "low")
    table = plain_table(["MOS", "training images", *counts], right=list(counts))
    for part in range(filled[0], filled[-1] + 1):
        start, end = edges[part], edges[part + 1]
        style = "blue" if end <= low else "green" if start >= high else ""
        if start <= high < end or high == end == edges[-1]:
            table.add_row("", f"{'┈' * 8} {top} tail: ≥ {high:.3f}", *_tails(content, counts, top), style="dim")
        numbers = [f"{column[part]:,}" for column in counts.values()]
        table.add_row(f"{start:.3g} … {end:.3g}", Text(_bar(counts["train"][part] / largest), style=style), *numbers)
        if start <= low < end or low == end == edges[-1]:
            table.add_row("", f"{'┈' * 8} {bottom} tail: ≤ {low:.3f}", *_tails(content, counts, bottom), style="dim")
    return table


def _tails(content: Mapping[str, Any], names: Iterable[str], segment: str) -> list[str]:
    return [f"{content['splits'][name]['segments'][segment]:,}" for name in names]


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    if share > 0:
        eighths = max(eighths, 1)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _remarks(content: Mapping[str, Any]) -> Iterator[Text]:
    """What looks wrong, and what a study refuses."""
    for name, split in content["splits"].items():
        if split["images"] and (left_out := split["images"]["left_out"]):
            shown = "; ".join(f"{item['id']!r}: {item['reason']}" for item in left_out[:3])
            more = "; …" if len(left_out) > 3 else ""
            yield Text(f"{name}: {plural(len(left_out), 'image')} left out: {shown}{more}", style="yellow")
    for (first, second, same, refused), group in groupby(sorted(content["shared"], key=_kind), key=_kind):
        items = list(group)
        where = f"duplicated in {first}" if first == second else f"in {first} and {second}"
        shown = "; ".join(f"{item['first']['id']!r} = {item['second']['id']!r}" for item in items[:3])
        more = "; …" if len(items) > 3 else ""
        yield Text(
            f"{plural(len(items), 'image')} {where}, the same {same}: {shown}{more}",
            style="red" if refused else "yellow",
        )


def _kind(item: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    return item["first"]["split"], item["second"]["split"], item["same"], item["refused"]


def show_plan(content: Mapping[str, Any]) -> None:
    """The content of `api.decode_images`: how much is cached, and how much is to be decoded."""
    table = plain_table(["split", "images", "px", "in all", "to decode"], right=["images", "in all", "to decode"])
    for name, split in content["splits"].items():
        sizes = [size_text(split[key]) for key in ("bytes", "missing")]
        table.add_row(name, f"{split['images']:,}", ", ".join(map(str, split["edges"])), *sizes)
    console.print(table)
    line = f"to decode: {size_text(content['missing'])}, into {content['cache']} ({size_text(content['free'])} free)"
    console.print(Text(line), soft_wrap=True)


def show_entries(cache: Path, entries: Sequence[Entry]) -> None:
    """The parts of the cache."""
    if entries:
        table = plain_table(["key", "images", "px", "size", "used", "from"], right=["images", "px", "size"])
        for entry in entries:
            used = f"{duration(time.time() - entry.used)} ago"
            edge = "–" if entry.edge is None else str(entry.edge)
            made = f"features of {entry.backbone}" if entry.backbone else "an older version: not used any more"
            table.add_row(entry.key, f"{entry.images:,}", edge, size_text(entry.bytes), used, entry.folder or made)
        console.print(table)
    total = size_text(sum(entry.bytes for entry in entries))
    console.print(Text(f"{cache}: {total}; to remove a part: elta-tune data cache --remove KEY"), soft_wrap=True)
