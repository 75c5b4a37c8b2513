"""`elta-tune data`: what a study would be made of, and the cache of decoded images."""

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
    labels_only: Annotated[bool, typer.Option("--labels-only", help="Look at no image: none need be there.")] = False,
    limit_gb: Limit = None,
    as_json: Json = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Checks all that a study checks before it starts, and shows the data.

    Images that are not in the cache are decoded. Exit code 2: a study would refuse to start.
    """
    from elta_tune.cli.data_view import show_check
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import errors
    from elta_tune.config import load_recipe
    from elta_tune.data.check import examine
    from elta_tune.data.report import describe
    from elta_tune.documents import find_document
    from elta_tune.errors import combined

    config = load_recipe(find_document(recipe, "trials"), overrides or ())
    cache = cache.absolute()
    with preparing(errors) as progress:
        if labels_only:  # which needs no torch
            examined = examine(config.data, cache, progress, recipes=[config], labels_only=True)
        else:
            from elta_tune.studies import preflight

            examined = preflight.check([config], cache, progress, limit=_bytes(limit_gb))
    content = describe(examined)
    for line in examined.notes:
        errors.print(f"note: {line}", style="yellow", markup=False, soft_wrap=True)
    if as_json:
        print_json(content)
    elif content["splits"]:
        show_check(content)
    if examined.refusals:
        raise combined(examined.refusals)


@app.command("cache")
def cache_(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Left out: what the cache holds.")] = None,
    overrides: Set = None,
    limit_gb: Limit = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be decoded.")] = False,
    show: Annotated[bool, typer.Option("--list", help="Show what the cache holds.")] = False,
    remove: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Remove a part of it.")] = None,
    as_json: Json = False,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Decodes the images of a recipe, once for all studies. Without one: shows what the cache holds, or removes parts.

    How much it takes is said before. Exit code 2: that is more than --limit-gb, or than is free on the disk.
    """
    from elta_tune.errors import ConfigError

    if recipe is not None and (show or remove):
        raise ConfigError("--list and --remove: are for the whole cache; leave RECIPE out")
    if recipe is None:
        _list(cache.absolute(), remove or [], as_json=as_json)
    else:
        _build(recipe, overrides or [], cache.absolute(), _bytes(limit_gb), dry_run=dry_run, as_json=as_json)


def _build(recipe: str, overrides: list[str], cache: Path, limit: int | None, *, dry_run: bool, as_json: bool) -> None:
    from elta_tune.cli.data_view import show_plan
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import command, console, errors
    from elta_tune.config import load_recipe
    from elta_tune.data.demo import with_demo
    from elta_tune.data.images import decode_files, find_files, look_up_files
    from elta_tune.data.report import describe_cache
    from elta_tune.data.splits import read_splits
    from elta_tune.documents import find_document

    config = load_recipe(find_document(recipe, "trials"), overrides)
    with preparing(errors) as progress:
        data = with_demo(config.data, cache, progress)
        found = {name: find_files(data, name, ratings) for name, ratings in read_splits(data).all.items()}
        cached = look_up_files(found, data, cache)
    if not as_json:
        show_plan(describe_cache(found, cached, cache))
    if not dry_run:
        with preparing(errors) as progress:
            cached = decode_files(cached, cache, progress, limit)
    if as_json:
        print_json(describe_cache(found, cached, cache))
    elif not dry_run:
        counts = {
            "missing": sum(len(part.missing) for part in found.values()),
            "unreadable": sum(len(part.unreadable) for part in cached.values()),
        }
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
        sets = [word for override in overrides for word in ("--set", override)]
        more = f"; {told}, see: {command('data', 'check', recipe, *sets)}" if told else ""
        console.print(
            f"{sum(len(part.decoded) for part in cached.values()):,} images are there{more}",
            markup=False,
            soft_wrap=True,
        )


def _list(cache: Path, remove: list[str], *, as_json: bool) -> None:
    from dataclasses import asdict

    from elta_tune.cli.data_view import show_entries
    from elta_tune.cli.text import console
    from elta_tune.data.cache.images import size_text
    from elta_tune.data.cache.inventory import list_entries, remove_entry

    removed = [remove_entry(cache, key) for key in remove]
    entries = list_entries(cache)
    if as_json:
        told = {"entries": [asdict(entry) for entry in entries], "removed": [asdict(entry) for entry in removed]}
        return print_json({"cache": cache, **told})
    for entry in removed:
        console.print(f"removed {entry.key}: {size_text(entry.bytes)}")
    show_entries(cache, entries)


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else round(gigabytes * 1e9)
