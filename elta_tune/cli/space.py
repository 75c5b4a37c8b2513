"""`elta-tune space check`, `to-nni` and `from-nni`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from elta_tune.cli.options import Set

SpaceFile = Annotated[str, typer.Argument(metavar="FILE", help="A search space.")]
RecipeFile = Annotated[str, typer.Option(help="The recipe that it varies.")]

app = typer.Typer(help="Search spaces.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def check(
    space: SpaceFile,
    recipe: RecipeFile = "demo.yaml",
    overrides: Set = None,
) -> None:
    """Checks a space against a recipe, and shows what it varies."""
    from elta_tune import api
    from elta_tune.cli.text import console, number, plain_table, say
    from elta_tune.config import read_overrides

    plan = api.check_space(space, recipe, overrides=read_overrides(overrides or ()))
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
