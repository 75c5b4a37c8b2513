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
    from rich.text import Text

    from elta_tune.cli.text import console, number, plain_table
    from elta_tune.config import load_recipe
    from elta_tune.documents import find_document
    from elta_tune.space.check import load_space
    from elta_tune.studies.plan import make_plan

    recipe_file = find_document(recipe, "trials")
    space_file = find_document(space, "search_spaces")
    config = load_recipe(recipe_file, overrides or ())
    plan = make_plan(load_space(space_file, config), config)
    table = plain_table(["parameter", "recipe", "varies over"])
    for name, parameter in plan.space.parameters.items():
        table.add_row(name, Text(number(config.get(name))), Text(str(parameter)))
    console.print(table)
    if plan.note:
        console.print(Text(f"note: {plan.note}"))
    objective, budget = plan.space.objective, plan.space.budget
    console.print(
        f"{objective.resolved_direction} {objective.metric}; {budget.trials} trials; "
        f"{plan.space.sampler.name} sampler; {plan.space.pruner.name.replace('none', 'no')} pruner"
    )
    console.print(Text(f"{space_file} fits {recipe_file}"), soft_wrap=True)


@app.command("to-nni")
def to_nni(space: SpaceFile, recipe: RecipeFile = "demo.yaml", overrides: Set = None) -> None:
    """Prints a space as NNI's search_space, in JSON."""
    import json

    from elta_tune.config import load_recipe
    from elta_tune.documents import find_document
    from elta_tune.space.check import load_space
    from elta_tune.studies.nni import space as nni_space
    from elta_tune.studies.plan import make_plan

    config = load_recipe(find_document(recipe, "trials"), overrides or ())
    plan = make_plan(load_space(find_document(space, "search_spaces"), config), config)
    print(json.dumps(nni_space.to_nni(plan.space, plan.recipe), indent=2))


@app.command("from-nni")
def from_nni(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON or YAML of NNI's, or the script that starts it, which is not run."),
    ],
) -> None:
    """Prints NNI's search_space as a space of ours, in YAML."""
    from elta_tune.studies.nni import space_import as nni_import

    print(nni_import.from_nni(file), end="")
