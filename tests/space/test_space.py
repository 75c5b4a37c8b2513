"""A search space: only live fields, whose values all fit, around the recipe's own; what trials then get."""

import warnings

import optuna
import pytest
import yaml

from elta_tune.config import SWITCHES, TrialConfig
from elta_tune.errors import ConfigError
from elta_tune.space.check import load_space
from elta_tune.space.parameters import Condition
from elta_tune.space.space import SearchSpace, hold_without_pool, parse_duration

LR = "parameters:\n  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "space.yaml"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def check(write):
    """Loads a space of parameters, each `name: {…}` in flow style, against the defaults with some changes."""

    def check(*parameters, top="", **recipe):
        lines = "".join(f"  {line}\n" for line in parameters)
        values = {name.replace("__", "."): value for name, value in recipe.items()}
        return load_space(write(f"parameters:\n{lines}{top}"), TrialConfig().replace(values))

    return check


def refusal(read, *arguments, **named):
    """What is said, line by line, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **named)
    return [line.partition("space.yaml:")[2] for line in caught.value.message.splitlines()]


def test_all_errors_of_a_space_are_reported_with_lines(write):
    file = write(
        "objective:\n  metric: emd_r1\nbudget:\n  trials: 12\nparameters:\n"
        "  optim.lrr: {type: float, low: 0.1x, high: 10x}\n"
        "  data.crop: {type: int, low: 1, high: 2}\n"
        "  mixup.tau_1: {type: float, low: 0.6, high: 1.0}\n"
        "  mixup.tau_2:\n    type: float\n    low: -1\n    high: 4\n"
        "  model.dropout: {type: float, low: 0.5, high: 1.5}\n"
        "  training.emd_reduction: {type: categorical, choices: [batch, sample]}\n"
        "  simloss.weight: {type: float, low: 0.0, high: 1.0, when: training.epoch > 3}\n"
        "enqueue:\n- {mixup.tau_1: 0.7}\n- {mixup.tau_1: 3, optim.momentum: 0.5}\n"
    )
    recipe = TrialConfig().replace({"model.head": "mse", "mixup.pairs": 0})
    assert refusal(load_space, file, recipe) == [
        "2: objective.metric: a head that predicts scores has no emd_r1; set model.head to emd",
        "6: parameters.optim.lrr: a recipe has no such field — did you mean 'optim.lr'?",
        "7: parameters.data.crop: decides what is measured; it is the same for all trials, so set it in the recipe",
        "8: parameters.mixup.tau_1: the recipe's value 0.5 is outside 0.6 … 1, and trial 0 trains the recipe: "
        "widen the range, or start from another recipe: `mixup.tau_1=0.6`",
        "8: parameters.mixup.tau_1: has no effect while mixup.pairs is 0 in the recipe; "
        "vary mixup.pairs too, or set another value in the recipe: `mixup.pairs=VALUE`",
        "9: parameters.mixup.tau_2: should be greater than 0, not -1.0",
        "9: parameters.mixup.tau_2: has no effect while mixup.pairs is 0 in the recipe; "
        "vary mixup.pairs too, or set another value in the recipe: `mixup.pairs=VALUE`",
        "13: parameters.model.dropout: should be less than 1, not 1.5",
        "14: parameters.training.emd_reduction: has no effect while model.head is 'mse' in the recipe; "
        "vary model.head too, or set another value in the recipe: `model.head=VALUE`",
        "15: parameters.simloss.weight.when: a recipe has no field training.epoch — did you mean 'training.epochs'?",
        "18: enqueue.1.mixup.tau_1: 3.0 is outside 0.6 … 1",
        "18: enqueue.1.optim.momentum: is not varied",
    ]


def test_unreadable_entry_does_not_hide_other_errors(write):
    file = write(
        "budgett: {trials: 3}\n"
        "parameters:\n"
        "  optim.lrr: {type: float, low: 0.1x, high: 10x}\n"
        "  mixup.tau_1: {type: float, low: 0.6, high: 1.0}\n"
        "  self_training.rounds: {type: int, low: none, high: 2}\n"
        "  sharpening.threshold: {type: float, low: 0.1, high: 0.9, when: self_training.rounds > 0}\n"  # depends on it
        "enqueue:\n- {mixup.tau_1: 3}\n"
    )
    assert refusal(load_space, file, TrialConfig()) == [
        "3: parameters.optim.lrr: a recipe has no such field — did you mean 'optim.lr'?",
        "4: parameters.mixup.tau_1: the recipe's value 0.5 is outside 0.6 … 1, and trial 0 trains the recipe: "
        "widen the range, or start from another recipe: `mixup.tau_1=0.6`",
        "8: enqueue.0.mixup.tau_1: 3.0 is outside 0.6 … 1",
        "1: budgett: there is no such field — did you mean 'budget'?",
        "5: parameters.self_training.rounds.low: should be a whole number, not 'none'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("parameters: {}\n", ["parameters: should not be empty"]),
        ("parameters: [1]\n", ["parameters: should hold `key: value` lines"]),
        ("parameters:\n  on: 3\n", ["parameters.on: a recipe has no such field", "parameters.on: type should be"]),
        ("parameters:\n  optim.lr: 3\n", ["parameters.optim.lr: type should be float, int or categorical, not 3"]),
        ("parameters:\n  optim.lr: {type: flaot}\n", ["parameters.optim.lr: type should be float, int or categorical"]),
        (
            "parameters:\n  optim.lr: {type: float, hihg: 1}\n",
            [
                "parameters.optim.lr.low: is missing",
                "parameters.optim.lr.high: is missing",
                "parameters.optim.lr.hihg: there is no such field — did you mean 'parameters.optim.lr.high'?",
            ],
        ),
        ("parameters:\n  optim.lr: {type: float, low: 2, high: 1}\n", ["parameters.optim.lr.low: should be at most"]),
        (
            "parameters:\n  optim.lr: {type: float, low: 0, high: 1, log: true}\n",
            ["parameters.optim.lr.low: should be above 0 on a log scale"],
        ),
        (
            "parameters:\n  optim.lr: {type: float, low: 1, high: 2, log: true, step: 1}\n",
            ["parameters.optim.lr.step: log and step exclude each other"],
        ),
        (
            "parameters:\n  training.epochs: {type: int, low: 1, high: 9, step: 3}\n",
            ["parameters.training.epochs.step: steps of 3 from 1 do not reach 9"],
        ),
        (
            "parameters:\n  mixup.tau_1: {type: float, low: 0.1, high: 1.0, step: 0.4}\n",
            ["parameters.mixup.tau_1.step: steps of 0.4 from 0.1 do not reach 1"],
        ),
        (
            "parameters:\n  mixup.tau_1: {type: float, low: 0, high: 1e300, step: 1e-9}\n",
            ["parameters.mixup.tau_1.step: steps of 1e-09 from 0 to 1e+300 are too many"],
        ),
        (
            "parameters:\n  training.epochs: {type: int, low: 1.5, high: 3}\n",
            ["parameters.training.epochs.low: should be a whole number, not 1.5"],
        ),
        ("parameters:\n  optim.lr: {type: categorical, choices: []}\n", ["optim.lr.choices: should not be empty"]),
        ("parameters:\n  optim.lr: {type: categorical, choices: 3}\n", ["optim.lr.choices: should be a list, not 3"]),
        (
            "parameters:\n  optim.lr: {type: categorical, choices: [[1], .nan, 2020-01-01]}\n",
            [
                "optim.lr.choices.0: should be a number, text, true, false or null",
                "optim.lr.choices.1: should be a finite number",
                "optim.lr.choices.2: should be a number, text, true, false or null",
            ],
        ),
        (
            "parameters:\n  optim.lr: {type: categorical, choices: [1x]}\nenqueue:\n- {optim.lr: 2x}\n",
            [
                "optim.lr: should be a number, not '1x'; only low and high may be relative to the recipe's value",
                "optim.lr: '2x' is outside 1x; only low and high may be relative to the recipe's value",
            ],
        ),
        ("parameters:\n  optim.lr: {type: float, low: 0.1.1x, high: x}\n", ["low: should be a number, not '0.1.1x'"]),
        ("parameters:\n  model.backbone: {type: float, low: 1x, high: 2}\n", ["low: should be a number, not '1x'"]),
        ("parameters:\n  mixup.alpha: {type: float, low: 1x, high: 2}\n", ["low: should be a number, not '1x'"]),
        ("parameters:\n  optim.lr: {type: float, low: 1x, high: 1e999x}\n", ["high: should be a finite number"]),
        ("parameters:\n  optim.lr: {type: float, low: true, high: 1}\n", ["low: should not be true or false"]),
        (LR + "objective: {metric: srrc}\n", ["objective.metric: should be a metric of the validation split: srcc, "]),
        (LR + "objective: {metric: spearman}\n", ["— did you mean 'srcc'?"]),
        (LR + "objective: {direction: max}\n", ["'maximize' or 'minimize', not 'max' — did you mean 'maximize'?"]),
        (LR + "sampler: {name: TPESampler}\n", ["not 'TPESampler' — did you mean 'tpe'?"]),
        (LR + "pruner: {name: MedianStop}\n", ["not 'MedianStop' — did you mean 'median'?"]),
        (LR + "n_trials: 3\n", ["n_trials: there is no such field — did you mean 'budget.trials'?"]),
        ("parameters:\n  optim.lr: {type: loguniform, low: 1, high: 2}\n", ["did you mean 'float with log: true'?"]),
        (
            "parameters:\n  optim.lr: {type: float, min: 1, max: 2}\n",
            ["low: is m", "high: is m", "lr.low'?", "lr.high'?"],
        ),
        ("parameters:\n  optim.lr: {type: float, low: 1, max: 2}\n", ["is missing", "optim.lr.high'?"]),
        ("parameters:\n  optim.lr: {type: categorical, values: [1]}\n", ["is missing", "optim.lr.choices'?"]),
        ("parameters:\n  optim.learning_rate: {type: float, low: 1, high: 2}\n", ["— did you mean 'optim.lr'?"]),
        (LR + "objective: {metric: bias_low}\n", ["objective.direction: bias_low has no direction of its own"]),
        (LR + "objective:\n", ["objective: should hold `key: value` lines, not null"]),
        (LR + "budget: {trials: 0}\n", ["budget.trials: should be greater than or equal to 1, not 0"]),
        (LR + "budget: {trials: yes}\n", ["budget.trials: should not be true or false"]),
        (LR + "budget: {timeout: 5w}\n", ["budget.timeout: should be a time such as 90s, 30m, 8h or 2d, not '5w'"]),
        (LR + "budget: {timeout: 0}\n", ["budget.timeout: should be greater than 0, not 0"]),
        (LR + f"budget: {{timeout: {'9' * 400}d}}\n", ["budget.timeout: should be a finite number"]),
        (
            LR + "sampler: {name: tpee}\n",
            ["sampler.name: should be 'tpe', 'random', 'grid', 'gp', 'qmc' or 'evolution', not 'tpee'"],
        ),
        (LR + "sampler: {name: random, startup_trials: 3}\n", ["sampler.startup_trials: has no effect with random"]),
        (LR + "sampler: {startup_trials: 0}\n", ["sampler.startup_trials: should be greater than or equal to 1"]),
        (LR + "pruner: {name: none, startup_trials: 3}\n", ["pruner.startup_trials: has no effect with none"]),
        (LR + "pruner: {warmup: 1}\n", ["pruner.warmup: should be less than 1, not 1"]),
        (LR + "pruner: {warmup: -0.1}\n", ["pruner.warmup: should be greater than or equal to 0, not -0.1"]),
        (LR + "enqueue: [[1]]\n", ["enqueue.0: should hold `key: value` lines"]),
        (LR + "enqueue: {optim.lr: 1}\n", ["enqueue: should be a list"]),
        (LR + "sampler: {name: grid}\n", ["parameters.optim.lr: the grid sampler needs a step or choices"]),
        (LR + "seed: 3\n", ["seed: there is no such field"]),
    ],
)
def test_malformed_space_is_reported_with_field_and_line(text, expected, write):
    lines = refusal(load_space, write(text), TrialConfig())
    assert len(lines) >= len(expected)
    for wanted, line in zip(expected, lines, strict=False):
        assert wanted in line


def test_an_empty_space_lacks_its_parameters(write):
    with pytest.raises(ConfigError, match=r"space\.yaml: parameters: is missing"):
        load_space(write("# nothing\n"), TrialConfig())


@pytest.mark.parametrize(
    ("parameter", "bad_end"),
    [
        ("mixup.tau_1: {type: float, low: 0, high: 1}", "should be greater than 0, not 0"),
        ("sharpening.threshold: {type: float, low: 0.5, high: 1}", "should be less than 1, not 1"),
        ("self_training.rounds: {type: int, low: -1, high: 2}", "should be greater than or equal to 0, not -1"),
        ("training.epochs: {type: int, low: 0, high: 40}", "should be greater than or equal to 1, not 0"),
        ("training.epochs: {type: int, low: 1, high: 99999999999}", "should be less than or equal to 1000000"),
        ("training.epochs: {type: float, low: 1, high: 40}", "should be a whole number, not 15.898"),
        ("mixup.pairs: {type: float, low: 0, high: 0.5}", "should be a whole number from 0 on, or a fraction"),
        ("mixup.pairs: {type: float, low: 0.5, high: 2}", "should be a whole number from 0 on, or a fraction"),
        ("mixup.alpha: {type: categorical, choices: [0.05, null]}", "should be greater than or equal to 0.1, not 0.05"),
        ("optim.name: {type: categorical, choices: [adam, adma]}", "should be 'adam', 'adamw' or 'sgd', not 'adma'"),
        ("optim.name: {type: categorical, choices: [adam, on]}", "should not be true or false"),
        ("optim.lr: {type: categorical, choices: [1e-5, fast]}", "should be a number, not 'fast'"),
        ("optim.lr: {type: categorical, choices: [1e-5, null]}", "should be a number, not null"),
        ("optim.lr: {type: categorical, choices: [1e-5, 2e-5, 0.00002]}", "duplicate choices: "),
        ("optim.warmup_epochs: {type: float, low: 0, high: 21}", "should be at most training.epochs (20), not 21"),
        ("self_training.rounds: {type: float, low: 0, high: 2, step: 0.5}", "should be a whole number, not 0.5"),
    ],
)
def test_either_end_of_a_range_builds_a_recipe(parameter, bad_end, check):
    lines = refusal(check, parameter)
    assert f"2: parameters.{parameter.partition(':')[0]}: {bad_end}" in " ".join(lines)


def test_both_ends_out_of_range_are_reported(check):
    lines = refusal(check, "sharpening.threshold: {type: float, low: -1, high: 2}", self_training__rounds=1)
    assert [line.partition(": should")[2] for line in lines] == [
        " be greater than or equal to 0, not -1.0",
        " be less than 1, not 2.0",
    ]


@pytest.mark.parametrize(
    ("parameter", "recipe"),
    [
        ("optim.lr: {type: float, low: 1e-3, high: 1}", {}),
        ("optim.lr: {type: float, low: 1e-7, high: 9e-6}", {}),
        ("training.epochs: {type: int, low: 1, high: 19}", {}),
        ("training.epochs: {type: int, low: 5, high: 35, step: 2}", {}),
        ("mixup.tau_1: {type: float, low: 0.1, high: 0.7, step: 0.3}", {}),
        ("mixup.tau_1: {type: categorical, choices: [0.1, 0.3]}", {}),
        ("mixup.alpha: {type: float, low: 0.2, high: 8}", {}),
        ("simloss.weight: {type: int, low: 0, high: 3}", {"simloss__weight": 0.5}),
        ("mixup.pairs: {type: float, low: 0.1, high: 0.9}", {}),
    ],
)
def test_a_space_contains_the_recipes_own_value(parameter, recipe, check):
    (line,) = refusal(check, parameter, **recipe)
    assert line.startswith(f"2: parameters.{parameter.partition(':')[0]}: the recipe's value ")
    field, _, value = (
        line.rpartition("start from another recipe: `")[2].rstrip("`").partition("=")
    )  # the remedy works as it is
    check(parameter, **recipe | {field.replace(".", "__"): yaml.safe_load(value)})


def test_a_value_outside_the_choices_names_a_remedy(check):
    (line,) = refusal(check, "mixup.alpha: {type: categorical, choices: [0.5, 1, 2]}")
    assert line.endswith(": add null to the choices, or start from another recipe: `mixup.alpha=0.5`")


@pytest.mark.parametrize(
    ("parameter", "recipe"),
    [
        ("optim.lr: {type: float, low: 1x, high: 2x}", {"optim__lr": 1.2345678901e-5}),
        ("optim.lr: {type: float, low: 0.5x, high: 1x}", {"optim__lr": 1.2345678901e-5}),
        ("optim.lr: {type: float, low: 1e-5, high: 1e-3, log: true}", {}),
        ("mixup.tau_1: {type: float, low: 0.1, high: 0.9, step: 0.1}", {"mixup__tau_1": 0.3}),
        ("mixup.tau_1: {type: float, low: 0.1, high: 0.9, step: 0.1}", {"mixup__tau_1": 0.7}),
        ("simloss.weight: {type: int, low: 0, high: 3}", {"simloss__weight": 2.0}),
        ("mixup.alpha: {type: categorical, choices: [1, null]}", {"mixup__alpha": 1.0}),
        ("mixup.pairs: {type: categorical, choices: [0, 1, 0.5]}", {"mixup__pairs": 0.5}),
        ("training.epochs: {type: int, low: 0.5x, high: 2x}", {}),
        ("model.pretrained: {type: categorical, choices: [true, false]}", {}),
        ("model.weights: {type: categorical, choices: [/a/b.pth, null]}", {"model__weights": "/a/b.pth"}),
    ],
)
def test_trial_0_is_the_recipe(parameter, recipe, check):
    space = check(parameter, **recipe)
    config = TrialConfig().replace({name.replace("__", "."): value for name, value in recipe.items()})
    (first,) = space.guesses(config)
    assert config.replace(first) == config
    assert yaml.safe_load(yaml.safe_dump(first)) == first  # plain values, also of paths
    assert SearchSpace.model_validate(yaml.safe_load(yaml.safe_dump(space.model_dump(mode="json")))) == space


def test_relative_bounds_are_shares_of_the_recipes_value(check):
    parameter = check("optim.lr: {type: float, low: 0.1x, high: 1e1x, log: true}", optim__lr=5e-4).parameters[
        "optim.lr"
    ]
    assert (parameter.low, parameter.high) == (5e-5, 5e-3)
    parameter = check("training.epochs: {type: int, low: 0.5x, high: 2x}").parameters["training.epochs"]
    assert (parameter.low, parameter.high) == (10, 40)


def test_choices_and_guesses_have_the_fields_own_type(check):
    space = check(
        "simloss.weight: {type: categorical, choices: [0, 1, 5e-1, '2']}",
        "training.epochs: {type: categorical, choices: [20, 4e1]}",
        "mixup.alpha: {type: categorical, choices: [1, null]}",
        top="enqueue: [{simloss.weight: 2, mixup.alpha: '1', training.epochs: 40.0}]\n",
    )
    choices = {name: parameter.choices for name, parameter in space.parameters.items()}
    assert choices == {"simloss.weight": (0, 1, 0.5, 2), "training.epochs": (20, 40), "mixup.alpha": (1, None)}
    assert [type(choice) for choice in choices["simloss.weight"]] == [float] * 4
    assert [type(choice) for choice in choices["training.epochs"]] == [int, int]
    assert [(name, type(value), value) for name, value in space.enqueue[0].items()] == [
        ("simloss.weight", float, 2),
        ("mixup.alpha", float, 1),
        ("training.epochs", int, 40),
    ]


# Dead fields ---------------------------------------------------------------------------------------------------------

VARIED = {
    "mixup.tau_1": "{type: float, low: 0.1, high: 1",
    "mixup.tau_2": "{type: float, low: 1, high: 3",
    "mixup.alpha": "{type: categorical, choices: [1, null]",
    "sharpening.temperature": "{type: float, low: 1, high: 2",
    "sharpening.threshold": "{type: float, low: 0.5, high: 0.9",
    "sharpening.target": "{type: categorical, choices: [raw, sharpened]",
    "self_training.epochs": "{type: int, low: 2, high: 6",
    "self_training.init": "{type: categorical, choices: [continue, restart]",
    "model.hidden_size": "{type: int, low: 32, high: 64",
    "training.emd_reduction": "{type: categorical, choices: [batch, sample]",
    "model.dropout": "{type: float, low: 0.5, high: 0.9",
    "optim.momentum": "{type: float, low: 0.5, high: 0.95",
    "model.pretrained": "{type: categorical, choices: [true, false]",
    "simloss.weight": "{type: float, low: 0, high: 1",
    "optim.backbone_lr_factor": "{type: float, low: 0.1, high: 1",
    "training.precision": "{type: categorical, choices: [auto, float32]",
}
STATES = {  # switch: a value that is on, one that is off, a range of both, the condition that lets only the first in
    "mixup.pairs": (1, 0, "{type: int, low: 0, high: 3}", "mixup.pairs >= 1"),
    "self_training.rounds": (1, 0, "{type: int, low: 0, high: 2}", "self_training.rounds != 0"),
    "model.head": ("emd", "mse", "{type: categorical, choices: [emd, mse]}", "model.head in [emd]"),
    "optim.name": ("sgd", "adam", "{type: categorical, choices: [sgd, adam]}", "optim.name == sgd"),
    "model.freeze": (False, True, "{type: categorical, choices: [false, true]}", "model.freeze != true"),
    "model.weights": (None, "/w.pth", "{type: categorical, choices: [null, /w.pth]}", "model.weights == null"),
}
CASES = [(switch, field) for switch in SWITCHES for field in switch.fields]


def states(switch, field):
    on, off, both, condition = STATES[switch.switch]
    if field == "model.dropout":
        return off, on, both, "model.head != emd"
    return on, off, both, condition


@pytest.mark.parametrize(("switch", "field"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_field_may_vary_only_where_its_feature_is_on(switch, field, check):
    on, off, both, condition = states(switch, field)
    key, parameter = switch.switch.replace(".", "__"), f"{field}: {VARIED[field]}"
    assert list(check(parameter + "}", **{key: on}).parameters) == [field]
    (line,) = refusal(check, parameter + "}", **{key: off})
    assert line.startswith(f"2: parameters.{field}: has no effect while {switch.switch} is ")
    assert line.endswith(f"or set another value in the recipe: `{switch.switch}=VALUE`")
    # The switch varies, too: then the field needs a condition, whatever the recipe's value is.
    for own in (on, off):
        (line,) = refusal(check, f"{switch.switch}: {both}", parameter + "}", **{key: own})
        assert line.startswith(f"3: parameters.{field}: has no effect where {switch.switch} is ")
        assert line.endswith(f"add `when: {switch.switch} {switch.rule}`")
        for rule in (condition, f"{switch.switch} {switch.rule}"):
            space = check(f"{switch.switch}: {both}", f'{parameter}, when: "{rule}"}}', **{key: own})
            assert (field in space.guesses(TrialConfig().replace({switch.switch: own}))[0]) == (own == on)


@pytest.mark.parametrize(
    ("when", "field", "own"),
    [
        ("optim.name == sgd", "optim.name", "is 'adam' in the recipe and is not varied"),
        ("optim.name in [sgd, adamw]", "optim.name", "is 'adam' in the recipe and is not varied"),
        ("optim.name != adam", "optim.name", "is 'adam' in the recipe and is not varied"),
        ("mixup.alpha > 1", "mixup.alpha", "is null in the recipe and is not varied"),
        ("data.demo.size > 1", "data.demo.size", "is null in the recipe and is not varied"),
        ("self_training.rounds > 2", "self_training.rounds", "varies over 0 … 2"),
        ('self_training.rounds > "a"', "self_training.rounds", "varies over 0 … 2"),
        ("[self_training.rounds > 0, self_training.rounds < 1]", "self_training.rounds", "varies over 0 … 2"),
        ("mixup.tau_1 > 1", "mixup.tau_1", "varies over 0.1 … 1"),
        ("mixup.tau_1 == 1.5", "mixup.tau_1", "varies over 0.1 … 1"),
        ("[mixup.tau_1 > 0.5, mixup.tau_1 < 0.5]", "mixup.tau_1", "varies over 0.1 … 1"),
    ],
)
def test_a_condition_that_never_holds_is_refused(when, field, own, check):
    others = ("self_training.rounds: {type: int, low: 0, high: 2}", "mixup.tau_1: {type: float, low: 0.1, high: 1}")
    when = when if when.startswith("[") else f"'{when}'"
    lines = refusal(check, *others, f"optim.lr: {{type: float, low: 0.1x, high: 10x, when: {when}}}")
    assert lines == [f"4: parameters.optim.lr: its condition never holds: {field} {own}"]


@pytest.mark.parametrize(
    "when",
    [
        "'optim.name == adam'",
        "'optim.lr > 9e-6'",  # not 'greater than the text 9e-6'
        "'mixup.alpha == null'",
        "'self_training.rounds == 2'",
        "'mixup.tau_1 == 0.3'",
        "['mixup.tau_1 > 0.5', 'mixup.tau_1 < 0.501']",
        "'mixup.tau_1 in [0.3, 7]'",
        "'model.pretrained == true'",
        "'training.epochs>=20'",
    ],
)
def test_a_condition_that_can_hold_is_taken(when, check):
    others = ("self_training.rounds: {type: int, low: 0, high: 2}", "mixup.tau_1: {type: float, low: 0.1, high: 1}")
    assert check(*others, f"simloss.weight: {{type: float, low: 0, high: 1, when: {when}}}").parameters


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("self_training.rounds", "should look like `self_training.rounds > 0`"),
        ("self_training.rounds => 1", "should look like `self_training.rounds > 0`"),
        ("self_training.rounds = 1", "should look like `self_training.rounds > 0`"),
        ("> 1", "should look like `self_training.rounds > 0`"),
        ("optim.name in adam", "`in` needs a list"),
        ("optim.name == [adam]", "`in` needs a list"),
        ("training.epochs > [", "expected the node content"),
        ("training.epochs > 2020-13-45", "can't be read as timestamp"),
        ("optim.lr > 0", "depends on optim.lr, which should be defined above it"),
        ("simloss.weight > 0", "depends on simloss.weight, which should be defined above it"),
        ("optim.nam == sgd", "a recipe has no field optim.nam — did you mean 'optim.name'?"),
        ("3", "should look like"),
    ],
)
def test_unreadable_condition_is_refused(when, message, check):
    parameters = (
        f"optim.lr: {{type: float, low: 0.1x, high: 10x, when: '{when}'}}",
        "simloss.weight: {type: float, low: 0, high: 1}",
    )
    (line,) = refusal(check, *parameters)
    assert line.startswith("2: parameters.optim.lr.when: ")
    assert message in line


@pytest.mark.parametrize("operator", [">", "<", ">=", "<=", "==", "!="])
@pytest.mark.parametrize("value", [-1, 0, 0.5, 1, 2])
def test_conditions_compare_like_python(operator, value):
    condition = Condition.parse(f"a.b {operator} 0.5")
    assert condition.holds(value) == eval(f"{value} {operator} 0.5")
    assert condition.holds(None) == (operator == "!=")


def test_values_that_conflict_with_each_other_are_refused(check):
    head, rounds = (
        "model.head: {type: categorical, choices: [emd, mse]}",
        "self_training.rounds: {type: int, low: 0, high: 2",
    )
    (line,) = refusal(check, head, rounds + "}")
    assert line.startswith(
        "3: parameters.self_training.rounds: where model.head is 'mse' and self_training.rounds is 2: "
    )
    assert check(head, rounds + ", when: model.head == emd}").parameters
    warmup = "optim.warmup_epochs: {type: float, low: 0, high: 15}"
    (line,) = refusal(check, warmup, "training.epochs: {type: int, low: 10, high: 20}")
    assert "should be at most training.epochs (10)" in line
    (line,) = refusal(
        check, "model.head: {type: categorical, choices: [emd, mse]}", top="objective: {metric: emd_r2}\n"
    )
    assert "a head that predicts scores has no emd_r2" in line


def test_guesses_that_do_not_fit_are_refused(check):
    rounds = "self_training.rounds: {type: int, low: 0, high: 2}"
    threshold = "sharpening.threshold: {type: float, low: 0.5, high: 0.9, when: self_training.rounds > 0}"
    guesses = "enqueue:\n- {sharpening.threshold: 0.6}\n- {self_training.rounds: 1, sharpening.threshold: 0.6}\n"
    assert refusal(check, rounds, threshold, top=guesses) == [
        "5: enqueue.0.sharpening.threshold: does not exist in this guess, because its `when` does not hold: "
        "remove it from the guess"
    ]
    guesses = "enqueue: [{self_training.round: 1, sharpening.threshold: 0.95}]\n"
    assert refusal(check, rounds, threshold, top=guesses) == [
        "4: enqueue.0.self_training.round: is not varied — did you mean 'self_training.rounds'?",
        "4: enqueue.0.sharpening.threshold: 0.95 is outside 0.5 … 0.9  when self_training.rounds > 0",
    ]


# What trials get -----------------------------------------------------------------------------------------------------

FULL = (
    "optim.lr: {type: float, low: 0.1x, high: 10x, log: true}",
    "mixup.alpha: {type: categorical, choices: [0.5, 2, null]}",
    "mixup.tau_1: {type: float, low: 0.1, high: 0.9, step: 0.1}",
    "training.epochs: {type: int, low: 10, high: 20, step: 5}",
    "self_training.rounds: {type: int, low: 0, high: 2}",
    "sharpening.threshold: {type: float, low: 0.3, high: 0.9, when: self_training.rounds > 0}",
    "sharpening.target: {type: categorical, choices: [raw, sharpened], "
    "when: [self_training.rounds > 0, sharpening.threshold < 0.6]}",
)


def test_an_optuna_trial_takes_the_space_as_it_is(check):
    space, recipe = check(*FULL), TrialConfig()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # e.g. that steps do not reach the upper bound
        for guess in space.guesses(recipe):
            study.enqueue_trial(guess)
        for _ in range(60):
            trial = study.ask()
            values = space.suggest(trial, recipe)
            assert trial.params == values
            config = recipe.replace(values)  # builds
            assert all(config.get(name) == value for name, value in values.items())
            seen.append(values)
    assert recipe.replace(seen[0]) == recipe
    for values in seen:
        assert 1e-6 <= values["optim.lr"] <= 1e-4
        assert values["mixup.alpha"] in (0.5, 2.0, None)
        assert round(values["mixup.tau_1"] * 10, 6) in range(1, 10)
        assert values["training.epochs"] in (10, 15, 20)
        assert ("sharpening.threshold" in values) == (values["self_training.rounds"] > 0)
        assert ("sharpening.target" in values) == (values.get("sharpening.threshold", 1) < 0.6)
    for name in ("mixup.alpha", "training.epochs", "self_training.rounds"):
        assert len({values[name] for values in seen}) == 3  # both ends too
    assert {values.get("sharpening.target") for values in seen} == {"raw", "sharpened", None}


def test_first_guesses_are_the_recipe_and_its_variations(check):
    guesses = "{self_training.rounds: 1, sharpening.threshold: 0.5}, {optim.lr: 2e-5}, {self_training.rounds: 2}"
    space = check(*FULL, top=f"enqueue: [{guesses}]\n")
    own = {"optim.lr": 1e-5, "mixup.alpha": None, "mixup.tau_1": 0.5, "training.epochs": 20, "self_training.rounds": 0}
    assert space.guesses(TrialConfig()) == [
        own,
        {**own, "self_training.rounds": 1, "sharpening.threshold": 0.5, "sharpening.target": "raw"},
        {**own, "optim.lr": 2e-5},
        {**own, "self_training.rounds": 2, "sharpening.threshold": 0.75},
    ]


def test_grid_has_each_valid_combination_once(check):
    space = check(
        "mixup.tau_1: {type: float, low: 0.1, high: 0.5, step: 0.2}",
        "self_training.rounds: {type: int, low: 0, high: 2}",
        "sharpening.target: {type: categorical, choices: [raw, sharpened], when: self_training.rounds > 0}",
        top="sampler: {name: grid}\n",
        mixup__tau_1=0.3,
    )
    expected = [
        {"mixup.tau_1": tau, "self_training.rounds": rounds} | ({"sharpening.target": target} if target else {})
        for tau in (0.1, 0.3, 0.5)
        for rounds, target in [(0, None), (1, "raw"), (1, "sharpened"), (2, "raw"), (2, "sharpened")]
    ]
    recipe = TrialConfig().replace({"mixup.tau_1": 0.3})
    assert space.grid(recipe) == expected
    assert space.guesses(recipe)[0] in expected  # so that the recipe is not run twice


def test_grid_that_is_uncountable_or_too_large_is_refused(check):
    fields = ("optim.lr: {type: float, low: 0, high: 1, step: 1e-5}", "training.epochs: {type: int, low: 1, high: 20}")
    lines = refusal(check, *fields, top="sampler: {name: grid}\n", optim__lr=1e-5)
    assert "a grid of 2,000,020 combinations is too large; the limit is 10,000: use larger" in lines[-1]
    one_value = "optim.lr: {type: float, low: 1x, high: 1x}"
    assert check(one_value, top="sampler: {name: grid}\n").grid(TrialConfig()) == [{"optim.lr": 1e-5}]


# Self-training without a pool ----------------------------------------------------------------------------------------


def test_with_a_pool_nothing_is_held(check):
    space, recipe = check(*FULL), TrialConfig().replace({"data.demo": {}})
    assert hold_without_pool(space, recipe) == (space, recipe, None)


def test_without_a_pool_self_training_fields_are_dropped(check):
    late = "optim.weight_decay: {type: float, low: 0, high: 1, when: self_training.rounds == 1}"
    early = "simloss.weight: {type: float, low: 0, high: 1, when: self_training.rounds == 0}"
    space = check(*FULL, late, early, top="enqueue: [{self_training.rounds: 1, optim.lr: 2e-5}]\n")
    recipe = TrialConfig().replace({"data.demo": {"pool": 0}})
    held, unchanged, note = hold_without_pool(space, recipe)
    kept = ["optim.lr", "mixup.alpha", "mixup.tau_1", "training.epochs", "simloss.weight"]
    dropped = ["self_training.rounds", "sharpening.threshold", "sharpening.target", "optim.weight_decay"]
    assert list(held.parameters) == kept
    assert note == f"no pool: self_training.rounds is held at 0; not varied: {', '.join(dropped)}"
    assert unchanged == recipe
    assert [set(guess) for guess in held.guesses(recipe)] == [set(kept), set(kept)]
    assert held.guesses(recipe)[1]["optim.lr"] == 2e-5


def test_without_a_pool_the_recipes_own_rounds_are_held_too(check):
    space, recipe = check(FULL[0]), TrialConfig().replace({"self_training.rounds": 2})
    held, changed, note = hold_without_pool(space, recipe)
    assert (held, changed.self_training.rounds) == (space, 0)
    assert note == "no pool: self_training.rounds is held at 0"
    assert hold_without_pool(space, TrialConfig())[2] is None


def test_without_a_pool_a_pure_self_training_space_is_refused(check):
    with pytest.raises(ConfigError, match="nothing is left to vary") as caught:
        hold_without_pool(check("self_training.rounds: {type: int, low: 0, high: 2}"), TrialConfig())
    assert caught.value.hint == "name a pool: `data.pool=FILE`"


def test_score_head_also_fixes_self_training(check):
    space = check(*FULL, model__head="mse", data__demo={})
    recipe = TrialConfig().replace({"model.head": "mse", "data.demo": {}})
    held, _, note = hold_without_pool(space, recipe)
    assert "self_training.rounds" not in held.parameters
    assert "optim.lr" in held.parameters
    assert note is not None
    assert note.startswith("model.head: mse: self_training.rounds is held at 0; not varied: self_training.rounds, ")


def test_sampler_blind_to_pruned_trials_refuses_a_pruner(check):
    top = "sampler: {name: gp}\npruner: {name: median}\n"
    message = "pruner.name: should be none with the gp sampler, not median"
    assert message in refusal(check, FULL[0], top=top)[0]
    assert check(FULL[0], top=top.replace("median", "none")).sampler.name == "gp"


# Objective and budget ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "direction"),
    [
        ("{}", "maximize"),
        ("{metric: accuracy}", "maximize"),
        ("{metric: mae}", "minimize"),
        ("{metric: emd_r1}", "minimize"),
        ("{metric: mae, direction: maximize}", "maximize"),
        ("{metric: std_ratio, direction: maximize}", "maximize"),
        ("{metric: bias_high, direction: minimize}", "minimize"),
    ],
)
def test_the_objective_chooses_the_best_epoch(objective, direction, check):
    space = check("optim.lr: {type: float, low: 0.1x, high: 10x}", top=f"objective: {objective}\n")
    assert space.objective.resolved_direction == direction
    recipe = space.with_objective(
        TrialConfig().replace({"evaluation.metric": "rmse", "evaluation.direction": "minimize"})
    )
    assert (recipe.evaluation.metric, recipe.evaluation.direction) == (space.objective.metric, direction)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("8h", 28_800), ("2 d", 172_800), (" 30 m ", 1800)],
)
def test_durations(text, seconds, check):
    assert parse_duration(text, "--timeout") == seconds
    space = check("optim.lr: {type: float, low: 0.1x, high: 10x}", top=f"budget: {{timeout: '{text}'}}\n")
    assert space.budget.timeout == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "5w", "-5", "0", "0s", "1h30", "nan", "inf", "1e3", "9" * 400, "h", "5 hours"]
)
def test_invalid_duration_is_refused(text):
    with pytest.raises(ConfigError, match=r"should be a time above 0 such as 90s, 30m, 8h or 2d") as caught:
        parse_duration(text, "--timeout")
    assert caught.value.message.startswith(f"--timeout {text}: ")
