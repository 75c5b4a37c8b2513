"""The folders of a study's trials are the truth: where `study.db` says otherwise, it is written again from them."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState, create_trial

from elta_tune.config import load_recipe
from elta_tune.errors import ConfigError, DamagedError
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.space.parameters import Params
from elta_tune.studies.completion import given_points
from elta_tune.studies.optuna.sampling import Drawing
from elta_tune.studies.plan import StudyPlan

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


def restored_trials(folder: StudyFolder, plan: StudyPlan, recorded: Sequence[FrozenTrial]) -> list[FrozenTrial] | None:
    """The trials that a database should have, by number; None if `recorded` are these already.

    A trial with a folder is what the folder holds: it is RUNNING, and gets its result when the study is opened. A
    trial without one is as recorded. A number that nothing is known of is WAITING, to be proposed again.

    Raises:
        DamagedError: the parameters of a folder are not those of a point of the space.
    """
    rows = {trial.number: trial for trial in recorded}
    found = {number: params for number, trial in folder.trials() if (params := _params(trial, plan)) is not None}
    count = max([*rows, *found], default=-1) + 1
    given, trials = given_points(plan), []
    for number in range(count):
        row = rows.get(number)
        if number in found and not _agrees(row, found[number], folder.trial(number), plan):
            trials.append(_running(folder.trial(number), found[number], plan))
        elif row is not None:
            trials.append(row)
        else:
            fixed = {"fixed_params": given[number]} if number < len(given) else {}
            trials.append(create_trial(state=TrialState.WAITING, system_attrs=fixed))
    unchanged = len(recorded) == count and all(one is other for one, other in zip(trials, recorded, strict=True))
    return None if unchanged else trials


def _params(trial: TrialFolder, plan: StudyPlan) -> Params | None:
    """The parameters of a trial by its own record; None where it has no readable one, and begins again."""
    if (result := trial.result()) is not None:
        return dict(result.params)
    try:
        config = load_recipe(trial.config_file)
    except ConfigError:
        return None
    return plan.space.point_of(config, plan.recipe)


def _agrees(row: FrozenTrial | None, params: Params, trial: TrialFolder, plan: StudyPlan) -> bool:
    if row is None or row.state == TrialState.WAITING:
        return False
    if plan.space.point_key(row.params) != plan.space.point_key(params):
        return False
    result = trial.result()
    if result is None or row.state == TrialState.RUNNING:
        return not row.state.is_finished()
    return row.state == STATES[result.state] and (result.state != "complete" or row.values == [result.value])


def _running(trial: TrialFolder, params: Params, plan: StudyPlan) -> FrozenTrial:
    drawing = Drawing(lambda name, _: params[name])
    try:
        values = plan.space.suggest(drawing, plan.recipe)
        if values.keys() != params.keys():
            raise ValueError(f"{', '.join(params.keys() ^ values.keys())} should not be there")
        return create_trial(state=TrialState.RUNNING, params=values, distributions=drawing.distributions)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{trial.path}: its parameters are no point of the study's space: {error}") from error
