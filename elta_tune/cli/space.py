"""`elta-tune space check`, `to-nni` and `from-nni`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elta_tune.api import DEFAULT_CACHE
from elta_tune.cli.options import Cache, Set

SpaceFile = Annotated[str, typer.Argument(metavar="FILE", help="A search space.")]
RecipeFile = Annotated[str, typer.Option(help="The recipe that it varies.")]

app = typer.Typer(help="Search spaces.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def check(
    space: SpaceFile,
    recipe: RecipeFile = "demo.yaml",
    overrides: Set = None,
    cache: Cache = DEFAULT_CACHE,
) -> None:
    """Checks a space against a recipe and its data, and shows what it varies.

    No image is looked at, and no model built; `data check` does both. Exit code 2: a study would refuse to start.
    """
    from elta_tune import api
    from elta_tune.cli.progress import preparing
    from elta_tune.cli.text import console, errors, number, plain_table, say
    from elta_tune.config import read_overrides
    from elta_tune.errors import combined

    with preparing(errors) as progress:
        options = read_overrides(overrides or ())
        found = api.check_space(space, recipe, overrides=options, cache=cache, progress=progress)
    plan = found.plan
    table = plain_table(["parameter", "recipe", "varies over"])
    for name, parameter in plan.space.parameters.items():
        table.add_row(name, number(plan.recipe.get(name)), str(parameter))
    console.print(table)
    if plan.note:
        console.print(f"note: {plan.note}")
    objective, budget = plan.space.objective, plan.space.budget
    console.print(
        f"{objective.resolved_direction} {objective.metric}; {budget.trials} trials; "
        f"{plan.space.sampler.name} sampler; {plan.space.pruner.name.replace('none', 'no')} pruner"
    )
    if found.refusals:
        raise combined(found.refusals)
    if not found.has_data:
        say("the data were not checked; to name them: --set data.root=FOLDER")
    say(f"{space} fits {recipe}")


@app.command("to-nni")
def to_nni(space: SpaceFile, recipe: RecipeFile = "demo.yaml", overrides: Set = None) -> None:
    """Prints a space as NNI's search_space, in JSON."""
    import json

    from elta_tune import api
    from elta_tune.cli.output import encodable_json
    from elta_tune.config import read_overrides

    found = api.space_to_nni(space, recipe, overrides=read_overrides(overrides or ()))
    print(encodable_json(json.dumps(found, indent=2)))


@app.command("from-nni")
def from_nni(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON or YAML of NNI's, or the script that starts it, which is not run."),
    ],
) -> None:
    """Prints NNI's search_space as a space of ours, in YAML."""
    from elta_tune import api

    print(api.space_from_nni(file), end="")
