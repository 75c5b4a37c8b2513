"""NNI's own tuners and Medianstop under elta-tune's layer: first guesses, no repetitions, no dead dispatcher."""

import json

import pytest
import yaml
from sample_records import epoch_record, trial_result

from elta_tune.studies.nni.space import decode, to_nni
from elta_tune.studies.nni.tuner import make_assessor, make_tuner
from elta_tune.studies.plan import record_plan

nni = pytest.importorskip("nni", reason="NNI is not installed")

FREE = {
    "optim.lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True},
    "mixup.alpha": {"type": "categorical", "choices": [None, 0.5, 2.0]},
    "self_training.rounds": {"type": "int", "low": 0, "high": 2},
    "sharpening.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": "self_training.rounds > 0"},
}
FINITE = {
    "mixup.alpha": {"type": "categorical", "choices": [None, 0.5, 2.0]},
    "training.batch_size": {"type": "int", "low": 7, "high": 9},
}
GUESSES = [{"mixup.alpha": 2.0}, {}, {"mixup.alpha": 0.5}]  # the second is the recipe once more


@pytest.fixture
def study(study_folder, make_plan_of):
    """Records a study whose space has a sampler: (folder, plan)."""

    def study(sampler, parameters=FREE, enqueue=GUESSES, **space):
        plan = make_plan_of(parameters, sampler={"name": sampler}, enqueue=enqueue, budget={"trials": 12}, **space)
        record_plan(study_folder, plan, {})
        return study_folder, plan

    return study


def ready(folder, plan, workers=2):
    tuner = make_tuner(str(folder.path), plan.space.objective.resolved_direction, workers, "")
    tuner.update_search_space(json.loads(json.dumps(to_nni(plan.space, plan.recipe))))
    return tuner


def ask(tuner, plan, numbers):
    """What trials of these numbers get, as NNI's dispatcher asks for it and its JSON carries it."""
    sent = tuner.generate_multiple_parameters(list(numbers), st_callback=lambda *_: None)
    return [decode(plan.space, plan.recipe, json.loads(nni.dump(parameters))) for parameters in sent]


def train(folder, plan, number, params):
    """What a trial leaves that has begun."""
    folder.trial(number).create(plan.recipe.replace(params))


SAMPLERS = ["tpe", "random", "grid", "evolution"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_recipe_and_the_guesses_come_first_and_each_once(study, sampler):
    folder, plan = study(sampler, FINITE)
    first = ask(ready(folder, plan), plan, range(3))
    own = {"mixup.alpha": None, "training.batch_size": 8}
    assert first == [own, {**own, "mixup.alpha": 2.0}, {**own, "mixup.alpha": 0.5}]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_resumed_tuner_proposes_the_same_points(study, sampler):
    folder, plan = study(sampler, FINITE if sampler == "grid" else FREE)
    whole = ask(ready(folder, plan, workers=7), plan, range(7))
    for number, params in enumerate(whole[:2]):
        train(folder, plan, number, params)
    rest = ask(ready(folder, plan, workers=7), plan, range(2, 7))
    assert rest[0] == whole[2]  # the guess that is left
    if sampler == "random":  # the others also look at what runs, or has ended
        assert rest == whole[2:]
    assert not [params for params in rest if params in whole[:2]]


NESTED = {
    "mixup.alpha": {"type": "categorical", "choices": [None, 0.5]},
    "self_training.rounds": {"type": "int", "low": 0, "high": 1},
    "sharpening.threshold": {"type": "float", "low": 0.1, "high": 0.3, "step": 0.1, "when": "self_training.rounds > 0"},
}
POINTS = {
    "finite": (FINITE, [{"mixup.alpha": a, "training.batch_size": b} for a in (None, 0.5, 2.0) for b in (7, 8, 9)]),
    "nested": (
        NESTED,
        [
            {"mixup.alpha": alpha, "self_training.rounds": rounds, **threshold}
            for alpha in (None, 0.5)
            for rounds in (0, 1)
            for threshold in ([{"sharpening.threshold": t} for t in (0.1, 0.2, 0.3)] if rounds else [{}])
        ],
    ),
}


@pytest.mark.parametrize("name", sorted(POINTS))
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_point_is_tried_once_over_many_starts(study, sampler, name):
    """Running, failed and complete trials count, of this start and of those before."""
    space, points = POINTS[name]
    folder, plan = study(sampler, space, enqueue=[{"mixup.alpha": 0.5}])
    seen = []
    for batch in (2, 1, 10):
        tuner = ready(folder, plan, workers=12)
        proposed = ask(tuner, plan, range(len(seen), len(seen) + batch))
        tuner.trial_end(len(seen), success=False)
        proposed += ask(tuner, plan, [len(seen) + len(proposed)])
        for params in proposed:
            train(folder, plan, len(seen), params)
            seen.append(params)
    assert sorted(map(repr, seen)) == sorted(map(repr, points))
    with pytest.raises(nni.NoMoreTrialError):
        ready(folder, plan).generate_parameters(len(seen))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trial_with_a_folder_is_proposed_again(study, sampler):
    """NNI's database is lost: what the folders hold is what trials of these numbers are."""
    folder, plan = study(sampler, FINITE, enqueue=[])
    train(folder, plan, 1, {"mixup.alpha": 2.0, "training.batch_size": 9})
    proposed = ask(ready(folder, plan), plan, range(3))
    assert proposed[1] == {"mixup.alpha": 2.0, "training.batch_size": 9}
    assert proposed[1] not in (proposed[0], proposed[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_late_or_unordered_results_do_not_end_the_tuner(study, sampler):
    folder, plan = study(sampler, FINITE if sampler == "grid" else FREE)
    tuner = ready(folder, plan)
    value = {"default": 0.5, "srcc": 0.5}
    sent = tuner.generate_multiple_parameters([0, 1, 2], st_callback=lambda *_: None)
    if sampler != "evolution":  # which strikes off what has a result
        tuner.trial_end(1, True)
    tuner.receive_trial_result(1, sent[1], value)
    tuner.receive_trial_result(0, sent[0], value)
    tuner.trial_end(0, True)
    tuner.trial_end(2, False)
    assert len(ask(tuner, plan, [3])) == 1


@pytest.mark.parametrize("sampler", ["tpe", "evolution"])
def test_a_tuner_learns_from_trials_of_an_earlier_start(study, sampler):
    folder, plan = study(sampler, {"optim.lr": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}}, enqueue=[])
    finished = [10 ** (-4 + 4 * n / 11) for n in range(12)]
    near = [abs(index - 8) for index in range(12)]  # the best is the ninth, 0.08

    def proposed(learns):
        tuner = ready(folder, plan)
        if learns:
            tuner.import_data(
                [
                    {"parameter": {"optim.lr": lr}, "value": {"default": -d}}
                    for lr, d in zip(finished, near, strict=True)
                ]
            )
        return [params["optim.lr"] for params in ask(tuner, plan, range(1, 4))]

    assert proposed(True) == proposed(True) != proposed(False)


def test_a_trial_below_the_median_is_pruned_after_its_warm_up(study):
    folder, _ = study(
        "tpe", pruner={"name": "median", "startup_trials": 2, "warmup": 0.5}, changes={"training.epochs": 4}
    )
    assessor = make_assessor(str(folder.path), "maximize")

    def runs(trial, *values):
        """The verdicts after each of a trial's epochs."""
        history = [{"default": value} for value in values]
        return [assessor.assess_trial(trial, history[:step]).name for step in range(1, len(history) + 1)]

    for trial, values in (("a", (0.5, 0.6, 0.7, 0.8)), ("b", (0.1, 0.3, 0.8, 0.8))):
        assert runs(trial, *values) == ["Good"] * 4  # too few are complete
        assessor.trial_end(trial, True)
    # Means up to epoch 3: a .6, b .4; NNI's median of two is the lower.
    assert runs("c", 0.1, 0.1, 0.39) == ["Good", "Good", "Bad"]
    assert runs("d", 0.1, 0.1, 0.41) == ["Good", "Good", "Good"]
    assert runs("e", 0.41, 0.1, 0.1) == ["Good", "Good", "Good"]  # its best epoch counts


def test_complete_trials_of_an_earlier_start_are_in_the_median(study):
    folder, plan = study("tpe", pruner={"name": "median", "startup_trials": 2, "warmup": 0})
    values = {
        0: ("complete", [0.5, 0.7]),
        1: ("pruned", [0.9]),
        2: ("complete", [0.6, None]),
        3: ("complete", [0.4, 0.2]),
    }
    for number, (state, curve) in values.items():
        trial = folder.trial(number)
        train(folder, plan, number, {})
        for step, value in enumerate(curve, 1):
            trial.append(epoch_record(step, srcc=value))
        trial.finish(trial_result(number, state), None)
    assessor = make_assessor(str(folder.path), "maximize")
    assert assessor.assess_trial("x", [{"default": 0.39}]).name == "Bad"  # .5 and .4; a curve with a gap has no mean
    assert assessor.assess_trial("y", [{"default": 0.1}, {"default": 0.31}]).name == "Good"  # .6 and .3


def test_resumed_trials_are_pruned_like_new_ones(study):
    from nni.runtime.msg_dispatcher import MsgDispatcher

    folder, plan = study("random", pruner={"name": "median", "startup_trials": 1, "warmup": 0})
    curves = {0: [0.5, 0.6, 0.7], 1: [0.1, 0.2, 0.3], 2: [0.2, 0.3, 0.9]}
    for number, curve in curves.items():  # each had two epochs when the study was stopped
        train(folder, plan, number, {})
        for step, value in enumerate(curve[:2], 1):
            folder.trial(number).append(epoch_record(step, srcc=value))
    dispatcher = MsgDispatcher("ws://_unittest_tuner", ready(folder, plan), make_assessor(str(folder.path), "maximize"))
    sent = []
    dispatcher.send = lambda command, data: sent.append(json.loads(data))
    dispatcher.handle_add_customized_trial([{"parameter_id": n, "parameters": {}} for n in curves])

    def goes_on(number):
        """The third epoch, then the end; what the dispatcher says to node."""
        folder.trial(number).append(epoch_record(3, srcc=curves[number][2]))
        trial = {"trial_job_id": f"resumed {number}"}
        metric = {"type": "PERIODICAL", "parameter_id": number, "number": number, "sequence": 2}
        dispatcher.handle_report_metric_data({**trial, **metric, "value": json.dumps({"default": curves[number][2]})})
        state, said = ("EARLY_STOPPED" if sent else "SUCCEEDED"), sent.copy()
        end = {"event": state, "hyper_params": json.dumps({"parameter_id": number})}
        dispatcher.handle_trial_end({**trial, **end})
        sent.clear()
        return said

    assert goes_on(0) == []  # nothing is complete
    assert goes_on(1) == ["resumed 1"]  # its best, .3, is below the mean of trial 0, .6
    assert goes_on(2) == []  # its best, .9, is not


def test_the_web_ui_shows_which_tuner_runs(study):
    from elta_tune.executors import Slot
    from elta_tune.studies.nni.experiment import experiment
    from elta_tune.studies.nni.folder import Workers

    folder, plan = study("evolution", pruner={"name": "median"})
    config = experiment(folder, plan, Workers(slots=[Slot("cpu", 1)] * 3, cache=folder.path))
    arguments = config["tuner"]["classArgs"]
    assert (arguments["tuner"], arguments["optimize_mode"], config["trialConcurrency"]) == ("Evolution", "maximize", 3)
    assert config["assessor"]["className"] == "elta_tune.studies.nni.tuner.make_assessor"
    assert yaml.safe_load(folder.study_file.read_text())["space"]["sampler"]["name"] == "evolution"
