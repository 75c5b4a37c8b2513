"""The progress of a study, from its folder and its plan."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from elta_tune.records import StudyFolder, TrialResult
from elta_tune.space.parameters import Params
from elta_tune.studies.backend import choose_backend
from elta_tune.studies.plan import StudyPlan


def given_points(plan: StudyPlan) -> list[Params]:
    """The parameters of the trials that no sampler proposes, in order and each once: the unchanged recipe, the
    space's `enqueue:`, and all of a grid.
    """
    grid = plan.space.grid(plan.recipe) if plan.space.sampler.name == "grid" else []
    return _each_once([*plan.space.guesses(plan.recipe), *grid])


def first_guesses(plan: StudyPlan) -> list[Params]:
    """The recipe as it stands and the space's `enqueue:`, in order and each once."""
    return _each_once(plan.space.guesses(plan.recipe))


def _each_once(points: Iterable[Params]) -> list[Params]:
    return list({tuple(point.items()): point for point in points}.values())


def trials_wanted(plan: StudyPlan) -> int:
    """How many trials the study ends with at the latest: its budget, or fewer if its space has fewer points."""
    if not plan.space.is_finite:
        return plan.budget.trials
    return sum(1 for _ in islice(plan.space.points(plan.recipe), plan.budget.trials))


def is_space_used_up(plan: StudyPlan, results: Iterable[TrialResult]) -> bool:
    """Whether every point of the space has its result."""
    tried = {plan.space.point_key(result.params) for result in results}
    return plan.space.is_finite and all(
        plan.space.point_key(point) in tried for point in plan.space.points(plan.recipe)
    )


def is_exhausted(folder: StudyFolder, plan: StudyPlan) -> bool:
    """Whether the study has nothing left to propose."""
    return choose_backend(folder, None).is_exhausted(folder, plan)


def is_finished(folder: StudyFolder, plan: StudyPlan) -> bool:
    """Whether the budget of trials is used, or nothing is left to propose."""
    return folder.used_budget() >= plan.budget.trials or is_exhausted(folder, plan)
