"""The plan of a study: how it continues, what it refuses, what study.yaml keeps of it."""

import pytest
import yaml

from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder
from elta_tune.space.check import load_space
from elta_tune.space.space import Budget
from elta_tune.studies.backend import StudyRequest
from elta_tune.studies.plan import make_plan, raise_budget, read_plan, record_plan
from elta_tune.studies.request import resolve_plan

SPACE = """
objective: {metric: mae}
budget: {trials: 6, timeout: 1h}
parameters:
  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}
  mixup.alpha: {type: categorical, choices: [1, null]}
  self_training.rounds: {type: int, low: 0, high: 2}
  sharpening.threshold: {type: float, low: 0.1, high: 0.9, when: self_training.rounds > 0}
enqueue:
- {self_training.rounds: 1}
"""


@pytest.fixture
def plan(tmp_path, recipe):
    """Makes a plan of the space above, with some of its lines changed, and of the recipe with some of its fields."""

    def plan(*changes, **fields):
        text = SPACE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "space.yaml"
        file.write_text(text)
        changed = recipe.replace({name.replace("__", "."): value for name, value in fields.items()})
        return make_plan(load_space(file, changed), changed)

    return plan


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(tmp_path / "runs" / "mine")


def settle(folder, plan, trials, timeout):
    return resolve_plan(StudyRequest(folder, plan, "optuna", {}, trials, timeout))


def test_the_objective_chooses_each_trials_best_epoch(plan):
    evaluation = plan().recipe.evaluation
    assert (evaluation.metric, evaluation.direction) == ("mae", "minimize")


def test_a_plan_is_recorded_whole_and_read_as_it_was(plan, folder):
    began = plan()
    record_plan(folder, began, {"study": "mine", "commit": "abc"})
    assert read_plan(folder) == began
    content = yaml.safe_load(folder.study_file.read_text())
    assert (content["study"], content["commit"], content["seed"]) == ("mine", "abc", 0)
    assert content["recipe"]["mixup"]["tau_2"] == 2  # every default is written out
    assert content["space"]["parameters"]["optim.lr"]["low"] == pytest.approx(3e-4)  # and every bound resolved
    assert content["space"]["objective"] == {"metric": "mae", "direction": "minimize"}


def test_a_plan_without_a_pool_is_recorded_with_its_note(plan, folder, tmp_path):
    began = plan(data__root=str(tmp_path / "elsewhere"))
    assert "not varied: self_training.rounds, sharpening.threshold" in began.note
    record_plan(folder, began, {})
    assert read_plan(folder) == began
    assert settle(folder, began, None, None) == began


def test_a_new_study_takes_any_budget(plan, folder):
    assert settle(folder, plan(), None, None).budget == Budget(trials=6, timeout=3600)
    assert settle(folder, plan(), 2, 60).budget == Budget(trials=2, timeout=60)
    assert not folder.path.exists()


@pytest.mark.parametrize(
    ("trials", "timeout", "expected"),
    [
        (None, None, (6, 3600)),
        (6, None, (6, 3600)),
        (9, None, (9, 3600)),
        (None, 7200, (6, 7200)),
        (9, 3600, (9, 3600)),
    ],
)
def test_budget_rises_only_when_requested(trials, timeout, expected, plan, folder):
    record_plan(folder, plan(), {"commit": "abc"})
    # What the space file now says of the budget does not matter: the study has its own.
    asked = plan(("{trials: 6, timeout: 1h}", "{trials: 2}"))
    settled = settle(folder, asked, trials, timeout)
    assert (settled.budget.trials, settled.budget.timeout) == expected
    record_plan(folder, settled, {"commit": "another"})
    assert read_plan(folder) == settled
    assert yaml.safe_load(folder.study_file.read_text())["commit"] == "abc"  # of the run that started it


@pytest.mark.parametrize(("trials", "timeout", "named"), [(5, None, "`trials=5`"), (None, 60, "`timeout=60s`")])
def test_a_budget_does_not_fall(trials, timeout, named, plan, folder):
    record_plan(folder, plan(), {})
    before = folder.study_file.read_bytes()
    with pytest.raises(StudyError, match=rf"^{named}: .* may only be raised$"):
        settle(folder, plan(), trials, timeout)
    assert folder.study_file.read_bytes() == before


def test_time_without_limit_is_not_lowered():
    with pytest.raises(StudyError, match=r"^`timeout=60s`: the study's time is without limit, and may only be raised$"):
        raise_budget(Budget(trials=6), None, 60)
    assert raise_budget(Budget(trials=6), 7, None) == Budget(trials=7)


CHANGES = [
    ([("high: 10x", "high: 20x")], {}, "space.parameters.optim.lr.high: 0.03 → 0.06"),
    ([("log: true", "log: false")], {}, "space.parameters.optim.lr.log: true → false"),
    ([("[1, null]", "[1, 2, null]")], {}, "space.parameters.mixup.alpha.choices: [1.0, null] → [1.0, 2.0, null]"),
    ([("metric: mae", "metric: rmse")], {}, "space.objective.metric: 'mae' → 'rmse'"),
    (
        [("{metric: mae}", "{metric: mae, direction: maximize}")],
        {},
        "space.objective.direction: 'minimize' → 'maximize'",
    ),
    ([("enqueue:", "sampler: {name: random}\nenqueue:")], {}, "space.sampler.name: 'tpe' → 'random'"),
    ([("enqueue:", "pruner: {warmup: 0.5}\nenqueue:")], {}, "space.pruner.warmup: 0.25 → 0.5"),
    (
        [("rounds: 1}", "rounds: 2}")],
        {},
        "space.enqueue: [{self_training.rounds: 1}] → [{self_training.rounds: 2}]",
    ),
    ([], {"seed": 1}, "recipe.seed: 0 → 1"),
    ([], {"training__epochs": 3}, "recipe.training.epochs: 2 → 3"),
    ([], {"simloss__weight": 0.5}, "recipe.simloss.weight: 1.0 → 0.5"),
    ([], {"data__columns__id": "name"}, "recipe.data.columns.id: null → 'name'"),
]


@pytest.mark.parametrize(("changes", "fields", "difference"), CHANGES, ids=[case[2] for case in CHANGES])
def test_another_configuration_is_refused_with_the_difference(changes, fields, difference, plan, folder):
    record_plan(folder, plan(), {})
    with pytest.raises(StudyError) as caught:
        settle(folder, plan(*changes, **fields), 9, None)
    first, *lines = caught.value.message.splitlines()
    assert first == "study mine was started with another configuration:"
    assert f"  {difference}" in lines
    assert "`name=NAME`" in caught.value.hint
    assert read_plan(folder) == plan()


def test_parameters_in_another_order_are_another_configuration(plan, folder):
    """The sampler draws them one after the other: the same seed would give other trials."""
    record_plan(folder, plan(), {})
    lr, alpha = SPACE.splitlines()[4:6]
    with pytest.raises(StudyError, match=r"order of space\.parameters: optim\.lr, mixup\.alpha, .* → mixup\.al"):
        settle(folder, plan((f"{lr}\n{alpha}\n", f"{alpha}\n{lr}\n")), None, None)


def test_changed_parameters_are_named_and_long_lists_cut(plan, folder):
    record_plan(folder, plan(), {})
    line = "  mixup.tau_1: {type: float, low: 0.1, high: 1}\n"
    with pytest.raises(StudyError, match=r"\n  space\.parameters\.mixup\.tau_1: null → \{when: "):
        settle(folder, plan(("enqueue:", f"{line}enqueue:")), None, None)
    fields = {"optim__name": "sgd", "optim__lr": 1e-3, "optim__momentum": 0.5, "optim__weight_decay": 0.1}
    fields |= {"optim__schedule": "cosine", "optim__warmup_epochs": 1, "mixup__tau_1": 0.1, "mixup__tau_2": 1}
    fields |= {"sharpening__target": "sharpened", "training__batch_size": 4, "model__hidden_size": 8, "seed": 4}
    with pytest.raises(StudyError) as caught:
        settle(folder, plan(**fields), None, None)
    assert len(caught.value.message.splitlines()) == 14
    assert caught.value.message.endswith("\n  … and 2 more")  # 12 of the recipe, and the bounds of optim.lr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged: space is missing"),
        (
            "study: mine\nspace: {parameters: {optim.lr: {type: float, low: 1, high: 2}}}\n",
            "damaged: recipe is missing",
        ),
        ("space:\nrecipe: {}\n", "should hold `key: value` lines, not null"),
        ("space: [1]\nrecipe: {}\n", "should hold `key: value` lines"),
        (
            "space: {parameters: {optim.lr: {type: float, low: 1, high: 2}}}\nrecipe: {sed: 1}\n",
            "sed: there is no such",
        ),
        ("space: {parameters: {optim.lr: {typ", "not a YAML document"),
        ("[1]", "should hold `key: value` lines"),
    ],
)
def test_a_damaged_study_is_refused_and_left_as_it_is(text, message, plan, folder):
    folder.path.mkdir(parents=True)
    folder.study_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settle(folder, plan(), None, None)
    assert caught.value.message.startswith(f"{folder.study_file}")
    assert message in caught.value.message
    assert folder.study_file.read_text() == text
