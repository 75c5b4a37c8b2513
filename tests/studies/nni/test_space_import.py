"""NNI's search spaces converted to elta-tune's: the same values, from any file, and no script is run."""

import json
import math

import pytest
import yaml

from elta_tune.config import TrialConfig
from elta_tune.errors import ConfigError
from elta_tune.space.check import load_space
from elta_tune.space.space import SearchSpace
from elta_tune.studies.nni.space import to_nni
from elta_tune.studies.nni.space_import import from_nni, parameters_of

RECIPE = TrialConfig()

SCRIPT = """\
from nni.experiment import Experiment
import pathlib
pathlib.Path("{trace}").touch()

search_space = {{
    'batch_size': {{'_type': 'choice', '_value': [16, 48]}},
    'lr': {{'_type': 'choice', '_value': [1e-5, 1e-4]}},
    # 'model.backbone': {{'_type': 'choice', '_value': ['vit']}},
    'simloss_weight': {{'_type': 'choice', '_value': [0.01, 0.1, 1.0, 5, 100]}},
    'tau_1': {{'_type': 'choice', '_value': [0.05, 0.1, 0.5]}},
    'tau_2': {{'_type': 'choice', '_value': [2, 3, 10]}},
}}

experiment = Experiment('local')
experiment.config.trial_command = 'python main.py'
experiment.config.search_space = search_space
experiment.config.tuner.name = 'TPE'
experiment.config.tuner.class_args['optimize_mode'] = 'maximize'
experiment.config.max_trial_number = 8
experiment.run(8089)
input()
"""


def test_the_dictionary_of_a_script_is_read_without_running_it(tmp_path):
    file, trace = tmp_path / "main_nni.py", tmp_path / "it_ran"
    file.write_text(SCRIPT.format(trace=trace))
    document = tmp_path / "space.yaml"
    document.write_text(from_nni(file))
    assert not trace.exists()
    space = load_space(document, RECIPE.replace({"simloss.weight": 1.0}))
    assert {name: parameter.choices for name, parameter in space.parameters.items()} == {
        "training.batch_size": (16, 48),
        "optim.lr": (1e-5, 1e-4),
        "simloss.weight": (0.01, 0.1, 1.0, 5.0, 100.0),
        "mixup.tau_1": (0.05, 0.1, 0.5),
        "mixup.tau_2": (2.0, 3.0, 10.0),
    }
    assert (space.budget.trials, space.sampler.name) == (8, "tpe")


EXPERIMENT = {
    "experimentName": "elta",
    "searchSpace": {"lr": {"_type": "loguniform", "_value": [1e-6, 1e-3]}},
    "maxTrialNumber": 30,
    "tuner": {"name": "Evolution", "classArgs": {"optimize_mode": "maximize"}},
}


@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
@pytest.mark.parametrize("whole", [True, False])
def test_file_may_be_an_experiment_or_only_its_space(tmp_path, suffix, whole):
    file = tmp_path / f"config.{suffix}"
    content = EXPERIMENT if whole else EXPERIMENT["searchSpace"]
    file.write_text(json.dumps(content) if suffix == "json" else yaml.safe_dump(content))
    read = yaml.safe_load(from_nni(file))
    assert read["parameters"] == {"optim.lr": {"type": "float", "low": 1e-6, "high": 1e-3, "log": True}}
    assert (read.get("budget"), read.get("sampler")) == (
        ({"trials": 30}, {"name": "evolution"}) if whole else (None, None)
    )


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("choice", ["raw", None, True, 0.5], {"type": "categorical", "choices": ["raw", None, True, 0.5]}),
        ("randint", [1, 5], {"type": "int", "low": 1, "high": 4}),
        ("uniform", ["1e-3", 2], {"type": "float", "low": 0.001, "high": 2.0}),  # YAML reads 1e-3 as text
        ("loguniform", [0.1, 10], {"type": "float", "low": 0.1, "high": 10.0, "log": True}),
        ("quniform", [1, 6, 1], {"type": "int", "low": 1, "high": 6}),
        ("qloguniform", [2, 64, 1], {"type": "int", "low": 2, "high": 64, "log": True}),
        ("quniform", [0.2, 0.8, 0.2], {"type": "float", "low": 0.2, "high": 0.8, "step": 0.2}),
    ],
)
def test_each_kind_of_nni_parameter_is_converted(kind, values, expected):
    space = {"mixup.alpha": {"_type": kind, "_value": values}}
    assert parameters_of(space, source="x") == {"mixup.alpha": expected}


@pytest.mark.parametrize(
    ("kind", "values"), [("quniform", [1, 9, 2]), ("quniform", [0.5, 2.2, 0.4]), ("qloguniform", [1, 90, 8])]
)
def test_rounded_and_clipped_values_are_listed_as_nni_makes_them(kind, values):
    from nni.common.hpo_utils import deformat_parameters, format_search_space

    space = {"mixup.tau_2": {"_type": kind, "_value": values}}
    (key, specification), *_ = format_search_space(space).items()
    span = specification.high - specification.low
    points = [specification.low + span * n / 20_000 for n in range(20_001)]
    made = {deformat_parameters({key: x}, {key: specification})["mixup.tau_2"] for x in points}
    listed = parameters_of(space, source="x")["mixup.tau_2"]["choices"]
    assert len(listed) == len(made)
    assert all(math.isclose(own, theirs) for own, theirs in zip(listed, sorted(made), strict=True))


ROUND_TRIPS = [
    {
        "self_training.rounds": {"type": "int", "low": 0, "high": 2},
        "sharpening.target": {
            "type": "categorical", "choices": ["raw", "sharpened"], "when": "self_training.rounds > 0"
        },
        "self_training.epochs": {"type": "int", "low": 1, "high": 3, "when": "self_training.rounds == 2"},
        "mixup.alpha": {"type": "categorical", "choices": [None, 0.5]},
    },
    {
        "optim.name": {"type": "categorical", "choices": ["adam", "sgd", "adamw"]},
        "mixup.pairs": {"type": "int", "low": 0, "high": 1},
        "mixup.alpha": {
            "type": "categorical", "choices": [None, 2.0], "when": ["mixup.pairs > 0", "optim.name in [sgd, adamw]"]
        },
        "mixup.tau_1": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.4, "when": "mixup.alpha == null"},
    },
]  # fmt: skip


@pytest.mark.parametrize("parameters", ROUND_TRIPS)
def test_a_space_that_went_to_nni_and_back_has_the_same_trials(parameters):
    recipe = RECIPE.replace({"mixup.alpha": 1.0})
    space = SearchSpace.model_validate({"parameters": parameters})
    back = parameters_of(json.loads(json.dumps(to_nni(space, recipe))), source="x")
    again = SearchSpace.model_validate({"parameters": yaml.safe_load(yaml.safe_dump(back, sort_keys=False))})

    def reached(each):
        return sorted(repr(sorted(point.items())) for point in each.grid(recipe))

    assert reached(again) == reached(space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lrr": {"_type": "uniform", "_value": [0, 1]}}, "lrr: is not a field of a recipe that a study can vary"),
        ({"name": {"_type": "choice", "_value": [1]}}, None),
        ({"data.crop": {"_type": "randint", "_value": [1, 9]}}, "data.crop: is not a field of a recipe"),
        ({"lr": {"_type": "normal", "_value": [0, 1]}}, "lr: normal is not supported"),
        ({"lr": {"_type": "uniform", "_value": [0]}}, "lr: uniform takes 2 numbers"),
        ({"lr": {"_type": "uniform", "_value": ["a", 1]}}, "lr: uniform takes numbers"),
        ({"lr": {"_type": "quniform", "_value": [0, 1, 0]}}, "lr: quniform takes 3 numbers, the third above 0"),
        ({"lr": {"_type": "quniform", "_value": [0, 1, 1e-6]}}, "lr: quniform has 1000001 values"),
        ({"lr": [0, 1]}, "lr: should look like"),
        ({"lr": {"_type": "choice", "_value": []}}, "lr: _value should be a list"),
        ({"lr": {"_type": "choice", "_value": [[1]]}}, "lr: choices should be numbers"),
        ({"lr": {"_type": "choice", "_value": [{"a": 1}]}}, "lr: each branch of a nested choice needs a _name"),
        (
            {
                "optim.name": {
                    "_type": "choice",
                    "_value": [
                        {"_name": "adam", "lr": {"_type": "uniform", "_value": [0.1, 1]}},
                        {"_name": "sgd", "lr": {"_type": "uniform", "_value": [0.1, 2]}},
                    ],
                }
            },
            "optim.lr: has different ranges in the branches",
        ),
        (
            {
                "optim.name": {
                    "_type": "choice",
                    "_value": [
                        {
                            "_name": name,
                            "mixup.pairs": {
                                "_type": "choice",
                                "_value": [
                                    {"_name": pairs} | ({"lr": {"_type": "choice", "_value": [1]}} if has else {})
                                    for pairs, has in branches
                                ],
                            },
                        }
                        for name, branches in (("adam", [("1", 1), ("2", 0)]), ("sgd", [("1", 0), ("2", 1)]))
                    ],
                }
            },
            "optim.lr: is in a combination of branches",
        ),
    ],
)  # fmt: skip
def test_unsupported_entries_are_refused_by_name(space, message):
    if message is None:
        assert parameters_of(space, source="x") == {"optim.name": {"type": "categorical", "choices": [1]}}
        return
    with pytest.raises(ConfigError) as caught:
        parameters_of(space, source="x.json")
    assert f"x.json: {message}" in caught.value.message


def test_every_fault_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parameters_of(
            {"lrr": {"_type": "uniform", "_value": [0, 1]}, "lr": {"_type": "normal", "_value": [0, 1]}}, source="x"
        )
    assert [line.split(":")[1] for line in caught.value.message.splitlines()] == [" lrr", " lr"]


def test_a_branch_can_have_any_name():
    names = ["a: b", "{", "null", "2"]
    found = parameters_of(
        {"optim.name": {"_type": "choice", "_value": [{"_name": name} for name in names]}}, source="x"
    )
    assert found == {"optim.name": {"type": "categorical", "choices": ["a: b", "{", None, 2]}}


def test_unsupported_entries_become_a_comment_above_the_space(tmp_path):
    script = SCRIPT.format(trace=tmp_path / "trace").replace("'maximize'", "'minimize'").replace("'TPE'", "'Anneal'")
    (tmp_path / "main.py").write_text(f"{script}\nexperiment.config.assessor.name = 'Curvefitting'\n")
    yml = "maxTrialNumber: 8\ntuner: {name: Anneal, classArgs: {optimize_mode: minimize}}\n"
    yml += "assessor: {name: Curvefitting}\nsearchSpace:\n  lr: {_type: loguniform, _value: [1e-5, 1e-3]}\n"
    (tmp_path / "config.yml").write_text(yml)
    for name in ("main.py", "config.yml"):
        text = from_nni(tmp_path / name)
        assert "# The experiment's tuner Anneal is not supported: the sampler is tpe.\n" in text
        assert "# The experiment's assessor Curvefitting is not supported: the pruner is median.\n" in text
        assert "# The experiment minimized, " in text
        assert yaml.safe_load(text)["budget"] == {"trials": 8}
    (tmp_path / "main.py").write_text(SCRIPT.format(trace=tmp_path / "trace"))
    assert "experiment" not in from_nni(tmp_path / "main.py")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.py", "x = {'lr': {'_type': 'choice', '_value': list(range(3))}}", r"a\.py:1: the search space is computed"),
        ("a.py", "x = 1", "should assign one dictionary .* but has none"),
        ("a.py", "a = {'lr': {'_type': 1, '_value': 2}}\nb = a\nc = {'lr': {'_type': 1, '_value': 2}}", "2: a, c"),
        ("a.py", "def f(:", r"a\.py:1: not a Python script"),
        ("a.json", "{", "not JSON"),
        ("a.json", "[]", "contains no search space"),
        ("a.yaml", "lr: 1\nlr: 2", "is a duplicate of line 1"),
        ("a.yaml", "searchSpaceFile: space.json\ntuner: {name: TPE}", r"is in space\.json: give that file"),
        ("a.json", '{"searchSpace": [1]}', "searchSpace: should be a mapping"),
        ("a.yaml", "maxTrialNumber: x\nsearchSpace: {lr: {_type: uniform, _value: [1, 2]}}", "budget.trials: should"),
        ("a.yaml", "lr: {_type: uniform, _value: [2, 1]}", r"a\.yaml: parameters\.optim\.lr"),
        ("a.txt", "", r"should be a \.json, \.yaml or \.py file"),
        ("absent.json", None, "can't be read"),
    ],
)  # fmt: skip
def test_a_file_without_a_readable_space_is_refused(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_nni(file)
