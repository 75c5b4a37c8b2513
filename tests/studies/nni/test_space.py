"""A space in NNI's format: NNI's own tuners reach exactly the points of the space."""

import json
import subprocess

import pytest

from elta_tune.config import TrialConfig
from elta_tune.errors import ConfigError, StudyError
from elta_tune.space.space import SearchSpace
from elta_tune.studies.nni.space import decode, encode, encode_with_indices, to_nni
from elta_tune.studies.nni.tuner import patch_nesting

nni_node = pytest.importorskip("nni_node", reason="NNI is not installed")

RECIPE = TrialConfig()


@pytest.fixture(scope="module", autouse=True)
def _nesting():
    patch_nesting()


def space_of(**parameters):
    return SearchSpace.model_validate({"parameters": {k.replace("__", "."): v for k, v in parameters.items()}})


def choices(*values, when=()):
    return {"type": "categorical", "choices": list(values), "when": list(when)}


def integers(low, high, when=(), **more):
    return {"type": "int", "low": low, "high": high, "when": list(when), **more}


def through_node(value):
    """As NNI's node passes it on: its JSON has no 1.0."""
    command = [f"{nni_node.__path__[0]}/node", "-e", "console.log(JSON.stringify(JSON.parse(process.argv[1])))"]
    done = subprocess.run([*command, json.dumps(value)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def drawn_by(tuner, space, count):
    """Parameters that a tuner of NNI's proposes for a space, as they reach a trial."""
    import nni

    tuner.update_search_space(through_node(to_nni(space, RECIPE)))
    proposed = []
    for number in range(count):
        try:
            proposed.append(json.loads(nni.dump(tuner.generate_parameters(number))))
        except nni.NoMoreTrialError:
            break
    return proposed


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ({"type": "float", "low": 0.5, "high": 2}, {"_type": "uniform", "_value": [0.5, 2.0]}),
        ({"type": "float", "low": 1e-6, "high": 1, "log": True}, {"_type": "loguniform", "_value": [1e-6, 1.0]}),
        ({"type": "float", "low": 0.1, "high": 0.4, "step": 0.1}, {"_type": "choice", "_value": [0.1, 0.2, 0.3, 0.4]}),
        ({"type": "int", "low": 1, "high": 4}, {"_type": "randint", "_value": [1, 5]}),
        ({"type": "int", "low": 1, "high": 9, "step": 4}, {"_type": "choice", "_value": [1, 5, 9]}),
        ({"type": "int", "low": 1, "high": 64, "log": True}, {"_type": "qloguniform", "_value": [1, 64, 1]}),
        (choices(0.5, None, True, "a"), {"_type": "choice", "_value": [0.5, None, True, "a"]}),
    ],
)
def test_each_kind_of_parameter_is_converted(parameter, expected):
    assert to_nni(space_of(mixup__alpha=parameter), RECIPE) == {"mixup.alpha": expected}


FINITE = {
    "null, whole numbers and text": space_of(
        mixup__alpha=choices(None, 1.0, 0.5), training__batch_size=integers(8, 11), optim__name=choices("adam", "sgd")
    ),
    "a step": space_of(
        optim__lr={"type": "float", "low": 0.1, "high": 0.7, "step": 0.2}, mixup__pairs=integers(1, 7, step=3)
    ),
    "one condition": space_of(
        self_training__rounds=integers(0, 2),
        sharpening__target=choices("raw", "sharpened", when=["self_training.rounds > 0"]),
        self_training__epochs=integers(1, 2, when=["self_training.rounds > 0"]),
        optim__name=choices("adam", "sgd"),
    ),
    "a chain": space_of(
        optim__name=choices("adam", "sgd"),
        optim__momentum=choices(0.5, 0.9, when=["optim.name == sgd"]),
        optim__warmup_epochs=choices(0.0, 1.0, when=["optim.momentum > 0.6"]),  # also with adam: the recipe has 0.9
    ),
    "two parents": space_of(
        optim__name=choices("adam", "sgd", "adamw"),
        mixup__pairs=integers(0, 1),
        mixup__alpha=choices(None, 2.0, when=["mixup.pairs > 0", "optim.name in [sgd, adamw]"]),
        training__batch_size=choices(8, 16),
    ),
    "the recipe decides": space_of(
        mixup__alpha=choices(None, 2.0, when=["mixup.pairs > 0"]),
        optim__momentum=choices(0.5, 0.9, when=["optim.name == sgd"]),
    ),
}


@pytest.mark.parametrize("name", FINITE)
def test_nnis_grid_search_reaches_each_combination_and_no_other(name):
    from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner

    space = FINITE[name]
    grid = space.grid(RECIPE)
    proposed = drawn_by(GridSearchTuner(), space, 10 * len(grid))
    reached = [decode(space, RECIPE, parameters) for parameters in proposed]
    assert sorted(map(repr, reached)) == sorted(map(repr, grid))  # repr: 1 is not 1.0, True is not 1


def test_random_draws_of_ranges_stay_inside_and_reach_both_ends():
    from nni.algorithms.hpo.random_tuner import RandomTuner

    space = space_of(
        optim__lr={"type": "float", "low": 1e-6, "high": 0.3, "log": True},
        training__batch_size=integers(2, 5),
        training__epochs=integers(1, 6, log=True),
        self_training__rounds=integers(0, 2),
        sharpening__threshold={"type": "float", "low": 0.2, "high": 0.9, "when": ["self_training.rounds > 1"]},
    )
    reached = [decode(space, RECIPE, parameters) for parameters in drawn_by(RandomTuner(seed=1), space, 400)]
    assert {params["training.batch_size"] for params in reached} == {2, 3, 4, 5}
    assert {params["training.epochs"] for params in reached} == set(range(1, 7))
    for params in reached:
        assert ("sharpening.threshold" in params) == (params["self_training.rounds"] == 2)
        assert all(space.parameters[name].contains(value) for name, value in params.items())
        assert [type(value) for value in params.values()][:4] == [float, int, int, int]
    below = sum(params["optim.lr"] < 5e-4 for params in reached)
    assert 150 < below < 250  # the middle of the logarithms


@pytest.mark.parametrize("name", FINITE)
def test_points_survive_the_round_trip_through_nni(name):
    from nni.utils import split_index

    space = FINITE[name]
    grid = space.grid(RECIPE)
    arrived = through_node([encode(space, RECIPE, point) for point in grid])
    assert [decode(space, RECIPE, parameters) for parameters in arrived] == grid
    for point in grid:
        assert split_index(encode_with_indices(space, RECIPE, point)) == encode(space, RECIPE, point)


def test_a_number_that_rounding_keeps_off_its_step_is_put_on_it():
    space = space_of(optim__lr={"type": "float", "low": 0.1, "high": 0.7, "step": 0.2})
    assert encode(space, RECIPE, {"optim.lr": 0.1 + 0.2}) == {"optim.lr": 0.3}


def test_values_that_nni_rounded_out_of_range_are_clipped():
    space = space_of(optim__lr={"type": "float", "low": 0.1, "high": 0.3, "log": True})
    assert decode(space, RECIPE, {"optim.lr": 0.30000000000000004}) == {"optim.lr": 0.3}


@pytest.mark.parametrize(
    "parameters",
    [
        {"optim.name": {"_name": "adam", "optim.momentum": 0.5}},
        {"optim.name": {"_name": "sgd"}},
        {"optim.name": {"_name": "rmsprop"}},
        {"optim.name": {"_name": "sgd", "optim.momentum": 0.7}},
        {"optim.name": {"_name": "adam"}, "optim.lr": 0.1},
        {},
    ],
)
def test_parameters_of_another_space_are_refused(parameters):
    space = space_of(optim__name=choices("adam", "sgd"), optim__momentum=choices(0.5, 0.9, when=["optim.name == sgd"]))
    with pytest.raises(StudyError, match="NNI sent parameters"):
        decode(space, RECIPE, parameters)


@pytest.mark.parametrize(
    "parent", [{"type": "float", "low": 0.2, "high": 2}, {"type": "int", "low": 1, "high": 4, "log": True}]
)
def test_condition_on_a_range_is_refused(parent):
    space = space_of(mixup__pairs=parent, mixup__alpha=choices(1, 2, when=["mixup.pairs > 1"]))
    with pytest.raises(ConfigError, match=r"parameters\.mixup\.alpha\.when: NNI .* not on mixup\.pairs") as caught:
        to_nni(space, RECIPE)
    assert "`backend=optuna`" in caught.value.hint


def test_branches_with_one_text_are_refused():
    space = space_of(optim__name=choices("1", 1), mixup__alpha=choices(1, 2, when=["optim.name == 1"]))
    with pytest.raises(ConfigError, match="these look the same"):
        to_nni(space, RECIPE)
