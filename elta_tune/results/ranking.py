"""The ranking of a study's trials."""

from __future__ import annotations

from elta_tune.errors import StudyError
from elta_tune.records import StudyFolder, TrialResult
from elta_tune.studies.plan import StudyPlan


def ranked(folder: StudyFolder, plan: StudyPlan) -> list[TrialResult]:
    """The results of all complete trials, the best first; of equals the earlier one."""
    complete = [result for result in folder.results() if result.state == "complete"]
    sign = -1 if plan.space.objective.resolved_direction == "maximize" else 1
    return sorted(complete, key=lambda result: (sign * (result.value or 0.0), result.trial or 0))


def best_result(folder: StudyFolder, plan: StudyPlan) -> TrialResult:
    """The result of the best complete trial.

    Raises:
        StudyError: no trial is complete.
    """
    ranking = ranked(folder, plan)
    if not ranking:
        states = [result.state for result in folder.results()]
        ended = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none has ended"
        raise StudyError(
            f"study {folder.name} has no complete trial ({ended})", f"look at them: elta-tune show {folder.name}"
        )
    return ranking[0]
