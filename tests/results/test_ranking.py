"""The ranking of trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_records import trial_result

from elta_tune.config import TrialConfig
from elta_tune.errors import StudyError
from elta_tune.records import StudyFolder
from elta_tune.results.ranking import best_result, ranked
from elta_tune.space.space import SearchSpace
from elta_tune.studies.plan import StudyPlan, make_plan

PARAMETERS: dict[str, Any] = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}}


def plan_for(metric: str, recipe: TrialConfig) -> StudyPlan:
    return make_plan(SearchSpace.model_validate({"parameters": PARAMETERS, "objective": {"metric": metric}}), recipe)


def study_of(folder: Path, *trials: tuple[str, float | None]) -> StudyFolder:
    study = StudyFolder(folder)
    for number, (state, value) in enumerate(trials):
        study.trial(number).path.mkdir(parents=True)
        study.trial(number).finish(trial_result(number, state, value), None)
    return study


@pytest.mark.parametrize(("metric", "order"), [("srcc", [3, 1, 4, 0]), ("mae", [0, 1, 4, 3])])
def test_complete_trials_are_ranked_and_ties_go_to_the_earlier(
    recipe: TrialConfig, tmp_path: Path, metric: str, order: list[int]
) -> None:
    trials = [("complete", 0.1), ("complete", 0.5), ("pruned", 0.9), ("complete", 0.7), ("complete", 0.5)]
    study = study_of(tmp_path, *trials, ("failed", None))
    assert [result.trial for result in ranked(study, plan_for(metric, recipe))] == order
    assert best_result(study, plan_for(metric, recipe)).trial == order[0]


def test_study_without_a_complete_trial_lists_its_states(recipe: TrialConfig, tmp_path: Path) -> None:
    study = study_of(tmp_path / "mine", ("pruned", 0.5), ("failed", None), ("pruned", 0.4))
    with pytest.raises(StudyError, match=r"study mine has no complete trial \(2 pruned, 1 failed\)"):
        best_result(study, plan_for("srcc", recipe))
    with pytest.raises(StudyError, match="none has ended"):
        best_result(StudyFolder(tmp_path / "other"), plan_for("srcc", recipe))
