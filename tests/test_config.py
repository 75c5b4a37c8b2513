"""A recipe: what it accepts at both ends of each range, what `--set` changes, what writing it keeps."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from elta_tune.config import FIELDS, SWITCHES, TrialConfig, load_recipe
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
from elta_tune.errors import ConfigError
from elta_tune.training.self_training import self_training_rounds


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "recipe.yaml"
        file.write_text(text)
        return file

    return write


def refusal(read, *arguments, **named):
    with pytest.raises(ConfigError) as caught:
        read(*arguments, **named)
    return caught.value.message


NUMBERS = {  # field: values that are in, values that are out, of either end
    "seed": ((0, 2**63 - 1), (-1, 2**63, 0.5)),
    "data.demo.train": ((1,), (0, -1)),
    "data.demo.pool": ((0,), (-1, 1.5)),
    "data.demo.size": ((16,), (15, 10**6)),
    "data.split.val": ((0, 0.5), (-0.1, 1)),
    "data.spread": ((1e-9, None), (0, -1)),
    "data.bins": ((2, 1000), (1, 1001)),
    "data.max_missing": ((0, 0.999), (-0.001, 1)),
    "data.resize": ((256, 1_000_000), (0, 255, 1_000_001)),
    "data.crop": ((1, 300), (0, 301)),
    "model.hidden_size": ((1,), (0, 2.5)),
    "model.dropout": ((0, 0.999), (-0.1, 1)),
    "optim.lr": ((1e-300, 1e300), (0, -1e-5)),
    "optim.backbone_lr_factor": ((1e-9,), (0, -1)),
    "optim.weight_decay": ((0,), (-1e-9,)),
    "optim.momentum": ((0, 0.999), (-0.1, 1)),
    "optim.warmup_epochs": ((0, 0.5, 20), (-0.1, 20.1)),
    "mixup.pairs": ((0, 1, 48, 0.001, 0.999), (-1, -0.5, 0.0, 1.0, 1.5)),
    "mixup.tau_1": ((1e-9,), (0, -1)),
    "mixup.tau_2": ((1e-9,), (0, -1)),
    "mixup.alpha": ((None, 0.1, 100), (0.0999, 0, -1)),
    "simloss.weight": ((0,), (-1e-9,)),
    "sharpening.temperature": ((0,), (-1e-9,)),
    "sharpening.threshold": ((0, 0.999), (-0.001, 1)),
    "self_training.rounds": ((0, 3), (-1, 0.5)),
    "self_training.epochs": ((1,), (0,)),
    "training.epochs": ((1,), (0, 2.5)),
    "training.retrain_head_epochs": ((0, 3), (-1, 0.5)),
    "training.batch_size": ((2,), (1, 0)),
    "evaluation.batch_size": ((1,), (0,)),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_are_held_to_both_ends_of_their_range(field):
    inside, outside = NUMBERS[field]
    for value in inside:
        assert TrialConfig().replace({field: value}).get(field) == value
    for value in (*outside, math.nan, math.inf, -math.inf, True, False, "abc", [1], {}):
        message = refusal(TrialConfig().replace, {field: value})
        section = field if field in message else field.rpartition(".")[0]  # e.g. resize below crop
        assert message.startswith(f"recipe: {section}") or (field, value) == ("data.resize", 255), (value, message)
        assert "\n" not in message


def test_every_number_of_a_recipe_is_in_the_table_above():
    types = {name: str(info.annotation) for name, info in FIELDS.items()}
    numeric = {name for name, text in types.items() if ("int" in text or "float" in text) and "Literal" not in text}
    others = {"data.scale", "data.threshold"}  # any numbers
    alike = {"data.demo.val", "data.demo.test", "data.demo.seed", "data.split.test", "data.split.seed"}
    assert numeric - others - alike == NUMBERS.keys()


def test_the_defaults_are_the_released_codes():
    """docs/method.md §6."""
    config = TrialConfig()
    model = config.model
    assert (model.backbone, model.hidden_size, model.head, model.dropout) == (
        "swinv2_base_window8_256",
        64,
        "emd",
        0.75,
    )
    assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("adam", 1e-5, "constant")
    assert (config.training.batch_size, config.training.epochs) == (48, 20)
    assert (config.data.resize, config.data.crop) == (300, 256)
    assert (config.mixup.pairs, config.mixup.tau_1, config.mixup.tau_2, config.mixup.alpha) == (1, 0.5, 2, None)
    assert (config.simloss.weight, config.self_training.rounds) == (0, 0)
    assert (config.sharpening.temperature, config.sharpening.threshold, config.sharpening.target) == (1.25, 0.75, "raw")


def test_numeric_text_is_a_number_and_other_text_is_refused(write):
    recipe = load_recipe(write("optim: {lr: '1e-5'}\nsimloss: {weight: 1E0}\nmixup: {pairs: '0.5'}\nseed: '3'\n"))
    assert (recipe.optim.lr, recipe.simloss.weight, recipe.mixup.pairs, recipe.seed) == (1e-5, 1.0, 0.5, 3)
    assert isinstance(load_recipe(write("mixup: {pairs: 2}\n")).mixup.pairs, int)
    assert refusal(load_recipe, write("optim: {lr: fast}\n")).endswith(":1: optim.lr: should be a number, not 'fast'")


def test_set_fixes_the_file_and_its_own_errors_name_it(write):
    file = write("optim:\n  lr: -1\n  name: sgdd\n")
    assert load_recipe(file, ["optim.lr=1e-4", "optim.name=sgd"]).optim.lr == 1e-4
    assert refusal(load_recipe, file, ["optim.lr=-2", "mixup.tau_3=1", "mixup.tau_1=x"]).splitlines() == [
        "`overrides`: mixup.tau_1: should be a number, not 'x'",
        "`overrides`: mixup.tau_3: there is no such field — did you mean 'mixup.tau_2'?",
        "`overrides`: optim.lr: should be greater than 0, not -2",
        f"{file}:3: optim.name: should be 'adam', 'adamw' or 'sgd', not 'sgdd' — did you mean 'sgd'?",
    ]


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("optim: {lr: 1}\n", ["optim={name: sgd}"], "optim: {name: sgd}\n"),  # a whole section
        ("data: {demo: {train: 5}}\n", ["data.demo=null"], "data: {demo: null}\n"),
        ("data: {demo: {train: 5}}\n", ["data.demo="], "data: {demo: null}\n"),
        ("data: {demo: null}\n", ["data.demo.size=64"], "data: {demo: {size: 64}}\n"),
        ("seed: 1\n", ["seed=2", "seed=3"], "seed: 3\n"),  # the last one wins
        ("", [" optim.lr = 1e-3 "], "optim: {lr: 0.001}\n"),
        ("", ["mixup.alpha=~", "model.pretrained=no"], "model: {pretrained: false}\n"),
        ("", ["data.columns.id=a=b"], "data: {columns: {id: a=b}}\n"),
    ],
)
def test_set_reads_its_value_as_yaml(text, overrides, expected, write):
    assert load_recipe(write(text), overrides) == load_recipe(write(expected))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr", "`overrides=optim.lr`: should look like section.field=value"),
        ("=3", "`overrides==3`: should look like section.field=value"),
        ("optim.lr=[", "`overrides=optim.lr=[`: the value is not YAML"),
        ("optim.lr=2020-13-45", "`overrides=optim.lr=2020-13-45`: the value is not YAML"),
        ("optim.lr=null", "`overrides`: optim.lr: should be a number, not null"),
        ("optim.lr=true", "`overrides`: optim.lr: should not be true or false"),
        ("optim.lr=[1]", "`overrides`: optim.lr: should be a number"),
        ("optim.lr.x=1", "`overrides`: optim.lr.x: there are no fields below lr, which is 1"),
        ("optim=3", "`overrides`: optim: should hold `key: value` lines, not 3"),
        ("optim={lr: x}", "`overrides`: optim.lr: should be a number, not 'x'"),
        ("seed.x=3", "and `overrides`: seed: should be a whole number"),
        ("optim.name.x=3", "and `overrides`: optim.name: should be 'adam', 'adamw' or 'sgd'"),
        ("=", "should look like section.field=value"),
        ("lr=1", "`overrides`: lr: there is no such field — did you mean 'optim.lr'?"),
        ("optim..lr=1", "`overrides`: optim.: there is no such field"),
        ("a.b.c.d=1", "there is no such field"),
        ("data.root=/somewhere", "data.demo: the built-in data exclude data.root"),
    ],
)
def test_a_wrong_set_is_one_line(override, message, write):
    found = refusal(load_recipe, write("data: {demo: {}}\noptim: {lr: 1}\n"), [override])
    assert message in found
    assert "`overrides" in found or "demo" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "text",
    ["set #2", "2024-05-01", "yes", "a: b", "[1, 2]", "{a", "*x", "1e5", "007", " x", "x ", "it's", "\\", "é"],
)
@pytest.mark.parametrize("field", ["data.root", "model.weights", "data.columns.id"])
def test_set_takes_text_as_it_was_typed(field, text, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = load_recipe(write(""), [f"{field}={text}"]).get(field)
    assert value == (text if field == "data.columns.id" else str(tmp_path / text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("null", None), ("", None), ("~", None), ("./null", "null"), ('"set #2"', "set #2"), ("'n'", "n")],
)
def test_set_reads_null_and_quotes_of_a_text_field(text, expected, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write("data: {root: /elsewhere}\n"), [f"data.root={text}"])
    assert recipe.get("data.root") == (expected and str(tmp_path / expected))


def test_set_does_not_hide_that_a_section_is_none(write):
    message = refusal(load_recipe, write("optim: 3\n"), ["optim.lr=1"])
    assert message == "`overrides`: optim.lr: there are no fields below optim, which is 3"


def test_paths_are_absolute_and_rating_files_are_below_the_root(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = load_recipe(write("data: {root: set, train: a/t.csv, val: /b/v.csv, pool: ~/p.csv}\n")).data
    assert (data.root, data.train, data.val) == (tmp_path / "set", tmp_path / "set/a/t.csv", Path("/b/v.csv"))
    assert data.pool == tmp_path / "home" / "p.csv"
    rootless = load_recipe(write("data: {train: t.csv, images: .}\n")).data
    assert (rootless.train, rootless.images) == (tmp_path / "t.csv", tmp_path)
    assert load_recipe(write("model: {weights: w.pth}\n")).get("model.weights") == str(tmp_path / "w.pth")


def test_files_of_a_root_are_found_by_themselves(tmp_path):
    data = TrialConfig().replace({"data.root": str(tmp_path)}).data
    assert (data.path("train"), data.path("images")) == (tmp_path / "train.csv", tmp_path / "images")
    assert (data.path("test"), data.path("pool"), data.has_pool) == (None, None, False)
    (tmp_path / "pool.csv").touch()
    assert data.has_pool
    demo = TrialConfig().replace({"data.demo": {"pool": 0}}).data
    assert not demo.has_pool
    assert TrialConfig().replace({"data.demo": {"pool": 1}}).data.has_pool


@pytest.mark.parametrize("name", ["root", "train", "val", "test", "pool", "images"])
def test_the_demo_takes_no_files_of_ones_own(name):
    message = refusal(TrialConfig().replace, {"data.demo": {}, f"data.{name}": "/x"})
    assert message.startswith(f"recipe: data.demo: the built-in data exclude data.{name};")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.head": "mse", "self_training.rounds": 1}, "self_training.rounds: a head that predicts scores"),
        ({"model.head": "mse", "evaluation.metric": "emd_r2"}, "evaluation.metric: a head that predicts scores"),
        (
            {"optim.warmup_epochs": 3, "training.epochs": 2},
            "optim.warmup_epochs: should be at most training.epochs (2)",
        ),
        ({"data.scale": [10, 1]}, "data.scale: should rise, not [10.0, 1.0]"),
        ({"data.scale": [1, 1]}, "data.scale: should rise, not [1.0, 1.0]"),
        (
            {"evaluation.metric": "srrc"},
            "evaluation.metric: should be a metric of the validation split: srcc, plcc, ",
        ),
        ({"evaluation.metric": "n_low"}, "evaluation.metric: should be a metric of the validation"),
        ({"evaluation.direction": "up"}, "evaluation.direction: should be 'maximize' or 'minimize', not 'up'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(values, message):
    assert refusal(TrialConfig().replace, values).startswith(f"recipe: {message}")


@pytest.mark.parametrize(
    ("metric", "direction"), [("srcc", "maximize"), ("accuracy", "maximize"), ("mae", "minimize"), ("bmae", "minimize")]
)
def test_best_epoch_uses_the_direction_of_the_metric_by_default(metric, direction, write):
    assert load_recipe(write(f"evaluation: {{metric: {metric}}}")).evaluation.direction == direction
    other = "minimize" if direction == "maximize" else "maximize"
    said = load_recipe(write(f"evaluation: {{metric: {metric}, direction: {other}}}"))
    assert said.evaluation.direction == said.evaluation.resolved_direction == other


def test_a_metric_without_a_better_side_needs_a_direction(write):
    file = write("evaluation:\n  metric: bias_low\n")
    assert refusal(load_recipe, file).startswith(f"{file}:1: evaluation.direction: bias_low has no direction")
    assert load_recipe(file, ["evaluation.direction=minimize"]).evaluation.resolved_direction == "minimize"


def test_a_written_recipe_is_complete_and_reads_as_itself(write, recipe, tmp_path):
    changed = recipe.replace(
        {
            "seed": 2**63 - 1,
            "optim.lr": 1.2345678901234567e-5,
            "mixup.pairs": 0.25,
            "mixup.alpha": 0.1,
            "data.scale": [0, 100],
            "data.columns.id": "Image name: ü #1",
            "data.pool": "a b: c #d.csv",
            "model.weights": str(tmp_path / "w.pth"),
            "evaluation.metric": "mae",
            "evaluation.direction": "minimize",
        }
    )
    for one in (recipe, changed, TrialConfig(), TrialConfig().replace({"data.demo": {}})):
        text = one.to_yaml()
        again = load_recipe(write(text))
        assert again == one
        assert again.to_yaml() == text
    written = yaml.safe_load(changed.to_yaml())
    for name in FIELDS:
        section = written
        *parents, leaf = name.split(".")
        for part in parents:
            section = section[part] or {}
        assert leaf in section or not section, name


def test_replace_changes_named_fields_and_keeps_the_recipe(recipe):
    before = recipe.to_yaml()
    changed = recipe.replace({"optim.lr": "1e-4", "mixup.alpha": 1})
    assert (changed.optim.lr, changed.mixup.alpha) == (1e-4, 1.0)
    assert changed.replace({"optim.lr": recipe.optim.lr, "mixup.alpha": None}) == recipe
    assert recipe.to_yaml() == before
    assert refusal(recipe.replace, {"optim.lrr": 1}, source="trial 7").startswith(
        "trial 7: optim.lrr: there is no such"
    )
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 1.0


# What acts, found out by training: a field that a space may vary changes the result while its switch is on, and never
# while it is off. `config.SWITCHES` claims just that.

ALWAYS = {
    "model.backbone": "test_resnet",
    "model.freeze": True,
    "model.head": "mse",
    "optim.name": "sgd",
    "optim.lr": 1e-3,
    "optim.weight_decay": 0.1,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 1,
    "mixup.pairs": 0.5,
    "self_training.rounds": 1,
    "training.epochs": 1,
    "training.batch_size": 16,
    "training.retrain_head_epochs": 1,
}
SWITCHED = {  # field: another value, and what switches it on and off
    "simloss.weight": (0.3, {"model.freeze": False}, {"model.freeze": True}),
    "optim.backbone_lr_factor": (0.1, {"model.freeze": False}, {"model.freeze": True}),
    "training.precision": ("bfloat16", {"model.freeze": False}, {"model.freeze": True}),
    "mixup.tau_1": (0.05, {"mixup.pairs": 1}, {"mixup.pairs": 0}),
    "mixup.tau_2": (0.1, {"mixup.pairs": 1}, {"mixup.pairs": 0}),
    "mixup.alpha": (0.2, {"mixup.pairs": 1}, {"mixup.pairs": 0}),
    "sharpening.temperature": (50.0, {"self_training.rounds": 1}, {"self_training.rounds": 0}),
    "sharpening.threshold": (0.1, {"self_training.rounds": 1}, {"self_training.rounds": 0}),
    "sharpening.target": ("sharpened", {"self_training.rounds": 1}, {"self_training.rounds": 0}),
    "self_training.epochs": (2, {"self_training.rounds": 1}, {"self_training.rounds": 0}),
    "self_training.init": ("restart", {"self_training.rounds": 1}, {"self_training.rounds": 0}),
    "model.hidden_size": (32, {"model.head": "emd"}, {"model.head": "mse"}),
    "training.emd_reduction": ("sample", {"model.head": "emd"}, {"model.head": "mse"}),
    "model.dropout": (0.1, {"model.head": "mse"}, {"model.head": "emd"}),
    "optim.momentum": (0.5, {"optim.name": "sgd"}, {"optim.name": "adam"}),
    "model.pretrained": (True, None, {"model.weights": "…"}),  # switched on it needs a network
}


@pytest.fixture(scope="module")
def trained(data_root, cache):
    """Trains variants of a recipe, each once: every epoch's loss and validation error."""
    torch.set_num_threads(1)
    base = TrialConfig().replace(
        {
            "data.root": str(data_root),
            "data.resize": 36,
            "data.crop": 32,
            "model.backbone": "test_efficientnet",
            "model.pretrained": False,
            "optim.lr": 3e-3,
            "training.epochs": 2,
            "training.batch_size": 8,
            "self_training.epochs": 1,
            "sharpening.threshold": 0.0,
        }
    )
    dataset = prepare(base.data, ImageCache(cache))
    rounds = self_training_rounds(base.replace({"self_training.rounds": 1}), dataset, torch.device("cpu"))
    confidence = next(epoch.selection.sharpened.amax(dim=1) for epoch in rounds if epoch.selection)
    base = base.replace({"sharpening.threshold": confidence.median().item()})  # selects half of the pool
    known = {}

    def train(values):
        config = base.replace(values)
        key = config.to_yaml()
        if key not in known:
            epochs = self_training_rounds(config, dataset, torch.device("cpu"))
            known[key] = [(epoch.training["loss"], epoch.metrics["mae"]) for epoch in epochs]
        return known[key]

    return train


def test_every_field_that_a_space_may_vary_is_tried_below():
    free = {name for name in FIELDS if name.partition(".")[0] not in ("seed", "data", "evaluation")}
    assert free == ALWAYS.keys() | SWITCHED.keys() | {"model.weights"}
    assert {name for switch in SWITCHES for name in switch.fields} == SWITCHED.keys()


@pytest.mark.parametrize("field", ALWAYS)
def test_a_field_without_a_switch_always_acts(field, trained):
    assert trained({field: ALWAYS[field]}) != trained({})


@pytest.mark.parametrize("field", SWITCHED)
def test_field_is_live_only_while_its_switch_is_on(field, trained, tmp_path):
    value, on, off = SWITCHED[field]
    if field == "model.pretrained":
        import timm

        save_file(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "w.safetensors")
        off = {"model.weights": str(tmp_path / "w.safetensors")}
        assert trained(off) != trained({})
    if on is not None:
        assert trained({**on, field: value}) != trained(on)
    assert trained({**off, field: value}) == trained(off)
    switch = next(switch for switch in SWITCHES if field in switch.fields)
    assert not switch.is_on(TrialConfig().replace(off).get(switch.switch))
    assert on is None or switch.is_on(TrialConfig().replace(on).get(switch.switch))


@pytest.mark.parametrize(
    ("data", "resolved"),
    [
        ({"train": "A.csv", "test": "B.csv", "split": {"val": 0.1}}, {"split": {"val": 0.1, "test": 0.0}}),
        ({"train": "A.csv", "val": "B.csv", "split": {}}, {"split": {"val": 0.0, "test": 0.1}}),
        ({"train": "A.csv", "val": None, "split": {}}, {"split": {"val": 0.1, "test": 0.1}}),
        ({"crop": 384}, {"crop": 384, "resize": 384}),
        ({"resize": 128}, {"crop": 128, "resize": 128}),
        ({"resize": 320}, {"crop": 256, "resize": 320}),
    ],
)
def test_a_default_gives_way_to_what_is_given(write, data, resolved):
    recipe = load_recipe(write(yaml.safe_dump({"data": data})))
    written = yaml.safe_load(recipe.to_yaml())["data"]
    for name, value in resolved.items():
        expected = {**value, "seed": 0} if name == "split" else value
        assert written[name] == expected
    assert load_recipe(write(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"test": "B.csv", "split": {"val": 0.1, "test": 0.1}}, "data.test: both this file and data.split.test"),
        ({"crop": 301, "resize": 300}, "data.crop: should be at most data.resize (300)"),
    ],
)
def test_a_contradiction_that_was_written_is_refused(write, data, words):
    assert words in refusal(load_recipe, write(yaml.safe_dump({"data": data})))
