"""`elta-tune data`: the data that a study is trained on, and the cache of decoded images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Json, Set
from elta_tune.cli.output import print_json

app = typer.Typer(help="Data sets, and the cache of their images.", no_args_is_help=True, rich_markup_mode=None)
Limit = Annotated[float | None, typer.Option(min=0, help="Most gigabytes that may be written to the cache.")]


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A file, or the name of a recipe that ships.")],
    overrides: Set = None,
    labels_only: Annotated[bool, typer.Option("--labels-only", help="Check rating files alone.")] = False,
    limit_gb: Limit = None,
    as_json: Json = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Checks all that a study checks before it starts, and shows the data.

    Images that are not in the cache are decoded. Exit code 2: a study would refuse to start.
    """
    from elta_tune import api
    from elta_tune.cli.data_view import show_check
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import errors, note
    from elta_tune.config import read_overrides
    from elta_tune.errors import combined

    with preparing(errors) as progress:
        found = api.check_data(
            recipe,
            overrides=read_overrides(overrides or ()),
            labels_only=labels_only,
            limit_gb=limit_gb,
            cache=cache,
            progress=progress,
        )
    for line in found.notes:
        note(line)
    if as_json:
        print_json(found.report)
    elif found.report["splits"]:
        show_check(found.report)
    if found.refusals:
        raise combined(found.refusals)


@app.command("cache")
def cache_(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Left out: the whole cache.")] = None,
    overrides: Set = None,
    limit_gb: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show how much there is to decode.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show the parts of the cache.")] = False,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove a part of it.")] = None,
    as_json: Json = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Decodes the images of a recipe, once for all studies. Without a recipe: shows the cache, or removes parts of it.

    Shows first how much there is to decode. Exit code 2: it is more than --limit-gb, or than is free on the disk.
    """
    from elta_tune.errors import ConfigError

    if recipe is not None and (show or remove):
        raise ConfigError("--list and --remove: are for the whole cache; leave RECIPE out")
    if recipe is None:
        return _show_cache(cache, remove or [], as_json=as_json)
    from functools import partial

    from elta_tune import api
    from elta_tune.cli.data_view import show_plan
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import command, errors, say
    from elta_tune.config import read_overrides

    decode = partial(api.decode_images, recipe, overrides=read_overrides(overrides or ()), limit_gb=limit_gb)
    with preparing(errors) as progress:
        content = decode(dry_run=True, cache=cache, progress=progress)
    if not as_json:
        show_plan(content)
    if not dry_run:
        with preparing(errors) as progress:
            content = decode(cache=cache, progress=progress)
    if as_json:
        print_json(content)
    elif not dry_run:
        splits = content["splits"].values()
        counts = {"missing": "not_found", "unreadable": "unreadable"}
        totals = {what: sum(split[key] for split in splits) for what, key in counts.items()}
        left_out = ", ".join(f"{count:,} {what}" for what, count in totals.items() if count)
        sets = [word for override in overrides or () for word in ("--set", override)]
        more = f"; {left_out}, see: {command('data', 'check', recipe, *sets)}" if left_out else ""
        say(f"{sum(split['decoded'] for split in splits):,} images are in the cache{more}")


def _show_cache(cache: Path, remove: list[str], *, as_json: bool) -> None:
    from dataclasses import asdict

    from elta_tune import api
    from elta_tune.cli.data_view import show_entries
    from elta_tune.cli.text import say
    from elta_tune.data.cache.progress import size_text

    removed = [api.remove_from_cache(key, cache) for key in remove]
    entries = api.list_cache(cache)
    if as_json:
        parts = {"entries": [asdict(entry) for entry in entries], "removed": [asdict(entry) for entry in removed]}
        return print_json({"cache": cache.absolute(), **parts})
    for entry in removed:
        say(f"removed {entry.key}: {size_text(entry.bytes)}")
    show_entries(cache.absolute(), entries)
