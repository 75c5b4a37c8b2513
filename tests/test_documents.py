"""YAML is read strictly: any content gives a value or a message, never a traceback."""

import copy
import math
import random
from pathlib import Path

import pytest
import yaml

from elta_tune.config import FIELDS, TrialConfig, load_recipe
from elta_tune.documents import NotYaml, find_document, read_document, read_value
from elta_tune.errors import ConfigError
from elta_tune.space.check import load_space
from elta_tune.suggestions import suggest_field

DEMO = Path(__file__).parents[1] / "trials" / "demo.yaml"
DEMO_RECIPE = load_recipe(DEMO)


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "file.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def refusal(read, *arguments):
    """The message with which `read` refuses."""
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    return caught.value.message


HOSTILE = {
    "a list": ("- 1\n- 2\n", "should hold `key: value` lines"),
    "text": ("abc", "should hold `key: value` lines"),
    "two documents": ("seed: 1\n---\nseed: 2\n", ":2: "),
    "a tab": ("optim:\n\tlr: 1\n", ":2: not a YAML document: a tab is used for indentation"),
    "two colons": ("data: {}\nmodel: a: b\n", ":2: not a YAML document: a second `: ` in a line"),
    "a quote that is not closed": ("model: 'a\n", "a quote is not closed"),
    "wrong indentation": ("optim:\n    lr: 1\n  name: sgd\n", ":3: not a YAML document: this line does not fit"),
    "an alias without an anchor": ("seed: *a\n", ":1: not a YAML document: an alias (*name) has no anchor"),
    "an at sign": ("model: {backbone: @a}\n", "text that begins with @, ` or % needs quotes"),
    "no blank after a colon": (
        "data: {split: {val:0.1}}\n",
        ":1: data.split.val:0.1: a blank is missing after the colon",
    ),
    "an open bracket": ("optim: {lr: 1\n", "not a YAML document"),
    "a key of a number": ("1: 2\n", ":1: 1: there is no such field"),
    "a key of a boolean": ("optim:\n  on: 2\n", ":2: optim.on: there is no such field"),
    "a key of null": ("null: 2\n", ":1: null: there is no such field"),
    "an empty key": ("'': 2\n", "'': there is no such field"),
    "a key of two lines": ('"a\\nb": 2\n', "'a\\nb': there is no such field"),
    "a key of a list": ("? [1, 2]\n: 3\n", ":1: "),
    "a key of a mapping": ("? {a: 1}\n: 3\n", ":1: "),
    "a section that is a list": ("optim: [1, 2]\n", ":1: optim: should hold `key: value` lines"),
    "a section that is null": ("optim:\n", ":1: optim: should hold `key: value` lines, not null"),
    "an alias of another section": ("optim: &a {lr: 1e-3}\nmixup: *a\n", "mixup.lr: there is no such field"),
    "an alias within its anchor": ("optim: &a\n  lr: *a\n", "alias"),
    "a document within itself": ("&a\noptim: *a\n", "alias"),
    "an unknown alias": ("optim: *a\n", ":1: "),
    "a merge of a number": ("optim:\n  <<: 3\n", ":2: "),
    "2,000 lists": ("seed: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
    "2,000 mappings": ("seed: " + "{a: " * 2000 + "1" + "}" * 2000, "nested too deeply"),
    "5,000 digits": ("seed: " + "9" * 5000 + "\n", ":1: "),
    "30 digits": ("seed: " + "9" * 30 + "\n", ":1: seed: should be less than"),
    "30 digits of epochs": ("training: {epochs: " + "9" * 30 + "}\n", ":1: training.epochs: should be less than"),
    "a date that does not exist": ("seed: 1\nmodel: {backbone: 2020-13-45}\n", ":2: "),
    "a date": ("seed: 2020-01-02\n", ":1: seed: should be a whole number"),
    "a tag that does not fit": ("seed: !!int abc\n", ":1: "),
    "a boolean tag that does not fit": ("seed: !!bool abc\n", ":1: "),
    "a time tag that does not fit": ("seed: !!timestamp abc\n", ":1: "),
    "an empty number": ("seed: !!float ''\n", ":1: "),
    "a Python object": ("seed: !!python/object/apply:os.system [ls]\n", ":1: "),
    "a set": ("optim: !!set {a, b}\n", ":1: optim: should hold"),
    "a NUL": ("seed: \0\n", "not a YAML document"),
    "a NUL in a path": ('data: {root: "a\\0b"}\n', ":1: data.root: "),
    "Latin-1": ("# é\nseed: 1\n".encode("latin-1"), "should be UTF-8 text"),
    "an emoji for a number": ("optim: {lr: 😀}\n", ":1: optim.lr: should be a number, not '😀'"),
    "a list for a path": ("data: {root: [1]}\n", ":1: data.root: should be a path"),
    "half a scale": ("data: {scale: [1]}\n", ":1: data.scale.1: is missing"),
    "too much of a scale": ("data: {scale: [1, 2, 3]}\n", ":1: data.scale: "),
    "a boolean in a scale": ("data: {scale: [true, 2]}\n", ":1: data.scale: should not be true or false"),
    "a dotted key": ("seed: 1\noptim.lr: 3\n", ":2: optim.lr: there is no such field: it belongs below `optim:`"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_recipe_is_one_line_that_names_file_and_place(name, write):
    text, expected = HOSTILE[name]
    file = write(text)
    message = refusal(load_recipe, file)
    assert message.startswith(f"{file}:")
    assert expected in message
    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n", "null\n", "{}\n"])
def test_an_empty_recipe_is_all_defaults(text, write):
    assert load_recipe(write(text)) == TrialConfig()


def test_missing_file_folder_and_overlong_name_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_document(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read_document(tmp_path)
    for name in (str(tmp_path), "x" * 5000, "~nobody-here/x.yaml", ""):
        with pytest.raises(ConfigError, match="no such file"):
            find_document(name, "trials")


def test_every_duplicate_key_is_reported_with_both_lines(write):
    file = write("seed: 1\noptim:\n  lr: 1\n  name: adam\n  lr: 2\nmixup: {pairs: 1, pairs: 1}\nseed: 2\n")
    assert refusal(read_document, file).splitlines() == [
        f"{file}:5: optim.lr is a duplicate of line 3",
        f"{file}:6: mixup.pairs is a duplicate of line 6",
        f"{file}:7: seed is a duplicate of line 1",
    ]


def test_all_errors_of_a_file_are_reported_with_lines(write):
    file = write(
        "sed: 1\noptim:\n  lr: -1\n  nam: adam\nmixup: {tau_1: 0}\ndata:\n  crop: 40\n  resize: 30\n"
        "training:\n  epochs: 2.5\nmodel:\n  head: emdd\n"
    )
    assert sorted(refusal(load_recipe, file).splitlines()) == sorted(
        [
            f"{file}:1: sed: there is no such field — did you mean 'seed'?",
            f"{file}:3: optim.lr: should be greater than 0, not -1",
            f"{file}:4: optim.nam: there is no such field — did you mean 'optim.name'?",
            f"{file}:5: mixup.tau_1: should be greater than 0, not 0",
            f"{file}:7: data.crop: should be at most data.resize (30), not 40",
            f"{file}:10: training.epochs: should be a whole number, not 2.5",
            f"{file}:12: model.head: should be 'emd' or 'mse', not 'emdd' — did you mean 'emd'?",
        ]
    )


def test_values_have_the_type_they_look_like(write):
    numbers = "[1e-5, 1E3, -2e+4, .5e1, 1.0e-5, '1e-5', 1e, e5, 1e-5x, 2]"
    content = read_document(write(f"a: {numbers}\non: yes\n1: no\n")).content
    assert content == {"a": [1e-5, 1e3, -2e4, 5.0, 1e-5, "1e-5", "1e", "e5", "1e-5x", 2], "on": True, "1": False}
    assert isinstance(content["a"][1], float)
    assert read_value("1e-5") == 1e-5
    assert read_value("") is None
    assert read_value("{a: [1]}") == {"a": [1]}
    with pytest.raises(NotYaml):
        read_value("[")


def test_merged_and_aliased_sections_are_read(write):
    recipe = load_recipe(write("optim: {<<: {lr: 1e-3, name: sgd}, name: adamw}\nmixup: {tau_1: &t 0.3, tau_2: *t}\n"))
    assert (recipe.optim.lr, recipe.optim.name, recipe.mixup.tau_1, recipe.mixup.tau_2) == (1e-3, "adamw", 0.3, 0.3)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("optim.lrr", "optim.lr"),
        ("optm.lr", "optim.lr"),
        ("training.bach_size", "training.batch_size"),
        ("evaluation.batchsize", "evaluation.batch_size"),
        ("optim.tau_1", "mixup.tau_1"),
        ("sharpening.temprature", "sharpening.temperature"),
        ("simloss_weight", "simloss.weight"),
        ("rounds", "self_training.rounds"),
        ("mixup.zzz", None),
        ("optim.learning_rate", "optim.lr"),
        ("learning-rate", "optim.lr"),
        ("training.bs", "training.batch_size"),
        ("tau1", "mixup.tau_1"),
        ("beta", "sharpening.temperature"),
        ("model.arch", "model.backbone"),
        ("numEpochs", "training.epochs"),
    ],
)
def test_suggest_field_knows_spelling_and_synonyms(key, suggestion):
    expected = f" — did you mean {suggestion!r}?" if suggestion else ""
    assert suggest_field(key, FIELDS) == expected


def test_bare_name_is_searched_here_in_the_folder_then_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_document("demo.yaml", "trials").resolve() == DEMO
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "demo.yaml").write_text("seed: 1\n")
    assert find_document("demo.yaml", "trials") == Path("trials/demo.yaml")
    (tmp_path / "demo.yaml").write_text("seed: 2\n")
    assert find_document("demo.yaml", "trials") == Path("demo.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        find_document("./default.yaml", "search_spaces")  # a path is only that path
    (tmp_path / "birds.yaml").touch()
    for name, meant in {"onw.yaml": "own", "default": "default", "bird.yaml": "birds", "./brids.yaml": "birds"}.items():
        with pytest.raises(ConfigError, match=rf"no such file — did you mean '{meant}\.yaml'\?$"):
            find_document(name, "search_spaces" if meant == "default" else "trials")
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file$") as caught:  # not of like name: .yaml alone
        find_document("x.yaml", "trials")
    assert "ava.yaml, demo.yaml" in caught.value.hint.replace("aadb.yaml, ", "")


SPACE = """
objective: {metric: mae, direction: minimize}
budget: {trials: 9, timeout: 2h}
sampler: {name: tpe, startup_trials: 4}
parameters:
  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}
  mixup.alpha: {type: categorical, choices: [0.5, null]}
  self_training.rounds: {type: int, low: 0, high: 2}
  sharpening.threshold: {type: float, low: 0.3, high: 0.9, when: [self_training.rounds > 0]}
enqueue:
- {self_training.rounds: 1, optim.lr: 1e-4}
"""
RECIPE = """
seed: 0
data:
  demo: {train: 99, size: 56}
  scale: [1, 10]
  columns: {id: name}
  resize: 56
  crop: 54
model: {backbone: test_resnet, pretrained: false, weights: null}
optim: {lr: 5e-4, warmup_epochs: 1}
mixup: {pairs: 0.1, alpha: 2}
evaluation: {metric: plcc}
"""
NASTY = [None, True, math.nan, math.inf, -1, 0, 10**25, 1e300, "", "x", "1x", [], [1, [2]], {}, {"a": 1}]


def replaced_everywhere(content):
    """Copies of a document, each with one value, mapping or list item replaced by something that may not fit."""

    def places(node, path=()):
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                yield (*path, key)
                yield from places(node[key], (*path, key))

    for path in places(content):
        for value in NASTY:
            changed = copy.deepcopy(content)
            target = changed
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            yield changed


def message_of(text, file):
    """What is said against a recipe or a space, or nothing; anything but a refusal is raised."""
    try:
        load_recipe(file) if text == RECIPE else load_space(file, DEMO_RECIPE)
    except ConfigError as error:
        return error.message
    return ""


@pytest.mark.parametrize("text", [RECIPE, SPACE], ids=["recipe", "space"])
def test_no_value_anywhere_ends_in_a_traceback(text, write):
    messages = []
    for content in replaced_everywhere(read_value(text)):
        file = write(yaml.safe_dump(content))
        messages.append(message_of(text, file))
    assert all(line.startswith(f"{file}") for message in messages for line in message.splitlines())
    assert len(messages) / 2 < sum(map(bool, messages)) < len(messages)


@pytest.mark.parametrize("text", [RECIPE, SPACE], ids=["recipe", "space"])
def test_no_slip_of_the_keyboard_ends_in_a_traceback(text, write):
    random_ = random.Random(0)
    slips = ["", " ", "\n", "\t", ":", "-", "[", "}", "'", "#", "&", "*", "!", "0", "é", ": ", "  ", "<<: "]
    messages = []
    for _ in range(100):
        position = random_.randrange(len(text))
        rest = text[position + random_.randint(0, 3) :]
        file = write(text[:position] + random_.choice(slips) + rest)
        messages.append(message_of(text, file))
    assert all(message.startswith(f"{file}:") for message in messages if message)
    assert sum(map(bool, messages)) > 50


@pytest.mark.parametrize("text", ["2024-05-01", "yes", "true", "1e5", "007", "2024", "0x1F", "1_000", ".inf", "a#b"])
def test_text_fields_of_a_file_keep_their_text(text, write):
    recipe = load_recipe(write(f"data:\n  root: /data\n  images: {text}\n  columns: {{id: {text}}}\n"))
    assert (recipe.data.images, recipe.data.columns.id) == (Path("/data", text), text)


@pytest.mark.parametrize("text", ["null", "~", "", "Null"])
def test_null_unsets_an_optional_text_field_of_a_file(text, write):
    assert load_recipe(write(f"data:\n  root: {text}\n")).data.root is None
