"""What a study is asked to be, and the claim on its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elta_tune.config import load_recipe
from elta_tune.documents import find_document, shown
from elta_tune.errors import ConfigError
from elta_tune.records import StudyFolder
from elta_tune.space import load_space
from elta_tune.studies.backends import check_plan
from elta_tune.studies.plan import StudyPlan, make_plan, settle


@dataclass(frozen=True)
class Asked:
    """A study that is asked for, which may be there already; `files` names its space and recipe."""

    folder: StudyFolder
    plan: StudyPlan
    files: dict[str, str]

    def settled(self, trials: int | None, timeout: float | None, backend: str) -> StudyPlan:
        """The plan that the study goes on with.

        Raises:
            StudyError: the study was started with another configuration or a larger budget.
            ConfigError: the back end can't run it.
        """
        plan = settle(self.folder, self.plan, trials, timeout)
        check_plan(plan, backend)
        return plan


def ask(
    space: str,
    recipe: str,
    overrides: Mapping[str, Any],
    *,
    seed: int | None,
    name: str | None,
    runs: Path,
    backend: str | None = None,
) -> Asked:
    """Reads what a study is asked to be. If no name is given, it is `SPACE-RECIPE`, or `SPACE-RECIPE-nni` under NNI.

    Raises:
        ConfigError: a file is missing or wrong, the space does not fit the recipe, or the name is none.
    """
    recipe_file, space_file = find_document(recipe, "trials"), find_document(space, "search_spaces")
    config = load_recipe(recipe_file, {**overrides, **({} if seed is None else {"seed": seed})})
    plan = make_plan(load_space(space_file, config), config)
    name = name or "-".join([space_file.stem, recipe_file.stem, *(["nni"] if backend == "nni" else [])])
    if Path(name).name != name or name.startswith(".") or not name.isprintable():
        raise ConfigError(f"--name {shown(name)}: should be a plain name; --runs says in which folder")
    folder = StudyFolder((runs / name).absolute())
    return Asked(folder, plan, {"space_file": str(space_file), "recipe_file": str(recipe_file)})


@contextmanager
def claimed(folder: StudyFolder) -> Iterator[int]:
    """Holds the study for this process; yields its lock. What is refused before it began leaves nothing behind.

    Raises:
        StudyError: another process holds it, or its folder can't be written.
    """
    with folder.lock() as lock:
        try:
            yield lock
        finally:
            if not folder.exists():
                folder.lock_file.unlink(missing_ok=True)
                with suppress(OSError):
                    folder.path.rmdir()
