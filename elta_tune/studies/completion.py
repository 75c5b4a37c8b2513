"""How far a study is, told from its folder and its plan alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from elta_tune.records import StudyFolder
from elta_tune.studies.nni.folder import NniFolder
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


def is_exhausted(folder: StudyFolder) -> bool:
    """Whether NNI has nothing left to propose: its samplers repeat no point of a space."""
    ending = NniFolder(folder).ended()
    return ending is not None and ending.reason == "exhausted"


def is_finished(folder: StudyFolder, plan: StudyPlan) -> bool:
    """Whether the budget of trials is used, or each point of the space has its result."""
    results = folder.results()
    if sum(result["state"] != "failed" for result in results) >= plan.budget.trials or is_exhausted(folder):
        return True
    return plan.space.sampler.name == "grid" and len(results) >= len(given_points(plan))
