"""A request to run a study: what is read from files and overrides, and the plan that follows from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elta_tune.config import load_recipe
from elta_tune.documents import find_document
from elta_tune.errors import ConfigError, Settings
from elta_tune.records import StudyFolder
from elta_tune.space.check import load_space
from elta_tune.space.space import Budget
from elta_tune.studies.backend import DEFAULT, StudyRequest, check_plan, choose_backend, load_backend
from elta_tune.studies.moved import content_of, moved_fields
from elta_tune.studies.plan import StudyPlan, make_plan, raise_budget, read_plan, record_plan, refuse_changes

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset


def request_study(
    space: str,
    recipe: str,
    overrides: Settings,
    *,
    seed: int | None,
    name: str | None,
    runs: Path,
    backend: str | None = None,
    trials: int | None = None,
    timeout: float | None = None,
) -> StudyRequest:
    """Reads the files of a study. If no name is given, it is `SPACE-RECIPE`, or `SPACE-RECIPE-BACKEND`.

    Raises:
        ConfigError: a file is missing or wrong, the space does not fit the recipe, or the name is none.
        StudyError: the study runs under another back end.
    """
    recipe_file, space_file = find_document(recipe, "trials"), find_document(space, "search_spaces")
    config = load_recipe(recipe_file, {**overrides, **({} if seed is None else {"seed": seed})})
    plan = make_plan(load_space(space_file, config), config)
    if name is None:
        name = "-".join([space_file.stem, recipe_file.stem, *([] if backend in (None, DEFAULT) else [backend])])
    folder = StudyFolder((runs / name).absolute())
    if Path(name).name != name or not folder.exists():  # a study of an earlier version keeps its name
        check_name(name)
    files = {"space_file": str(space_file), "recipe_file": str(recipe_file)}
    return StudyRequest(folder, plan, choose_backend(folder, backend).name, files, trials, timeout)


def check_name(name: str) -> None:
    """Refuses an invalid name of a new study: it becomes a folder, on any system, and a word of commands.

    Raises:
        ConfigError: says what is wrong, and gives a name like it.
    """
    wrong = next((what for what, is_wrong in _FAULTS.items() if is_wrong(name)), None)
    if wrong is None:
        return
    kept = "".join(letter if letter.isalnum() or letter in "-_. " else "-" for letter in name[: _LONGEST // 4])
    similar = kept.strip("-. ")
    similar = f"my-{similar}" if _is_device(similar) else similar
    raise ConfigError(
        f"`name={name}`: {wrong}: a study's name is a folder's name of letters, digits, spaces, `-`, `_` and `.`",
        f"choose another: `name={similar or 'my-study'}`",
    )


def _is_device(name: str) -> bool:
    return re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", name, re.IGNORECASE) is not None


_LONGEST = 200
_FAULTS: dict[str, Callable[[str], bool]] = {
    "is empty": lambda name: not name.strip(". "),
    "has a separator of folders": lambda name: "/" in name or "\\" in name,
    "has a character that no folder may have on some systems": lambda name: bool(re.search(r'[<>:"|?*]', name)),
    "has a character that can't be seen": lambda name: not name.isprintable(),
    "begins with `-`, `.`, `~` or a space": lambda name: name.startswith(("-", ".", "~", " ")),
    "ends with `.` or a space": lambda name: name.endswith((".", " ")),
    "is the name of a device on Windows": _is_device,
    f"is longer than {_LONGEST} bytes": lambda name: len(name.encode(errors="surrogateescape")) > _LONGEST,
}
"""What is wrong with a name, by the test for it."""


def resolve_plan(request: StudyRequest) -> StudyPlan:
    """The plan that a study continues with: its own with its budget raised, or the requested one if it is new.

    Raises:
        StudyError: the study was started with another configuration or a larger budget.
        ConfigError: the back end can't run it.
    """
    folder, plan, own = request.folder, request.plan, request.plan.budget
    if folder.exists():
        plan = read_plan(folder)
        moved = moved_fields(plan.recipe, request.plan.recipe)  # compared by content once the data are prepared
        plan = replace(plan, recipe=plan.recipe.replace(moved))
        refuse_changes(folder, plan, request.plan)
        budget = raise_budget(plan.budget, request.trials, request.timeout)
    else:
        budget = Budget(trials=request.trials or own.trials, timeout=request.timeout or own.timeout)
    plan = plan.with_budget(budget)
    check_plan(plan, load_backend(request.backend))
    return plan


def record_request(request: StudyRequest, plan: StudyPlan, dataset: Dataset) -> None:
    """Writes `study.yaml` with the facts of the run that starts it; for an existing study, its raised budget."""
    from elta_tune.provenance import commit, versions

    facts: dict[str, Any] = {"study": request.folder.name, "backend": request.backend, **request.files}
    facts |= {"packages": versions(), "commit": commit(), "content": content_of(plan, dataset)}
    record_plan(request.folder, plan, facts)
