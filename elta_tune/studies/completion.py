"""How far a study is, by its folder and its plan alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from elta_tune.records import StudyFolder
from elta_tune.studies.backend import backend_of
from elta_tune.studies.plan import StudyPlan


def given_points(plan: StudyPlan) -> list[dict[str, Any]]:
    """The parameters of the trials that no sampler proposes, in order and each once: the recipe as it stands, the
    space's `enqueue:`, and all of a grid.
    """
    grid = plan.space.grid(plan.recipe) if plan.space.sampler.name == "grid" else []
    return _each_once([*plan.space.guesses(plan.recipe), *grid])


def first_guesses(plan: StudyPlan) -> list[dict[str, Any]]:
    """The recipe as it stands and the space's `enqueue:`, in order and each once."""
    return _each_once(plan.space.guesses(plan.recipe))


def _each_once(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({tuple(point.items()): point for point in points}.values())


def trials_wanted(plan: StudyPlan) -> int:
    """How many trials the study ends with at the latest: its budget, or fewer if a grid has fewer points."""
    budget = plan.budget.trials
    return min(budget, len(given_points(plan))) if plan.space.sampler.name == "grid" else budget


def is_exhausted(folder: StudyFolder, plan: StudyPlan) -> bool:
    """Whether every point of the study's space was tried."""
    return folder.exists() and backend_of(folder).is_exhausted(folder, plan)


def is_finished(folder: StudyFolder, plan: StudyPlan) -> bool:
    """Whether the budget of trials is used, or each point of the space has its result."""
    return folder.used_budget() >= plan.budget.trials or is_exhausted(folder, plan)
