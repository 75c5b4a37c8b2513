"""What is wrong is refused before any training: one message that names file and field, exit code 2, nothing touched."""

import shutil

import pytest
import yaml

from elta_tune.config import load_recipe
from elta_tune.records import StudyFolder
from elta_tune.space.check import load_space
from elta_tune.studies.plan import make_plan, record_plan

LR = "  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}\n"


@pytest.fixture
def own_data(data_root, recipe_file):
    """A copy of the data set that a test may spoil; `tiny.yaml` points to it."""
    root = recipe_file.parent / "set"
    shutil.copytree(data_root, root)
    content = yaml.safe_load(recipe_file.read_text())
    content["data"]["root"] = str(root)
    recipe_file.write_text(yaml.safe_dump(content))
    return root


@pytest.fixture
def refused(elta_tune, tmp_path, recipe_file):
    """Runs the command next to an earlier study, and returns the message with which it refuses."""
    earlier = tmp_path / "runs" / "earlier"
    earlier.mkdir(parents=True)
    (earlier / "study.yaml").write_text("precious\n")

    def files():
        return {path: path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file()}

    def refused(*arguments, command="run"):
        before = files()
        done = elta_tune(command, *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("elta-tune: ")
        assert done.stderr.count("elta-tune: ") == 1
        assert before.items() <= files().items()
        assert not list(tmp_path.glob("**/trials"))
        return done.stderr.removeprefix("elta-tune: ")

    return refused


@pytest.fixture
def space_file(tmp_path):
    """Writes a space of parameters."""

    def write(parameters=LR):
        file = tmp_path / "mine.yaml"
        file.write_text(f"budget: {{trials: 2}}\nparameters:\n{parameters}")
        return file

    return write


def test_a_typo_in_a_space(refused, space_file, recipe_file):
    file = space_file(LR + "  simlos.weight: {type: float, low: 0, high: 1}\n")
    assert refused("--space", file, "--recipe", recipe_file) == (
        f"{file}:4: parameters.simlos.weight: a recipe has no such field — did you mean 'simloss.weight'?\n"
    )


def test_a_space_that_varies_a_feature_which_is_switched_off(refused, space_file, recipe_file):
    file = space_file("  mixup.tau_1: {type: float, low: 0.1, high: 1}\n")
    assert refused("--space", file.name, "--recipe", "tiny.yaml", "--set", "mixup.pairs=0") == (
        "mine.yaml:3: parameters.mixup.tau_1: has no effect while mixup.pairs is 0 in the recipe; "
        "vary mixup.pairs too, or set another value in the recipe: --set mixup.pairs=VALUE\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "optim.lrr=1"], "--set: optim.lrr: there is no such field — did you mean 'optim.lr'?\n"),
        (["--set", "optim.lr"], "--set optim.lr: should look like section.field=value\n"),
        (["--recipe", "tinny.yaml"], "tinny.yaml: no such file — did you mean 'tiny.yaml'?\n  there are: "),
        (["--recipe", "sub/tiny.yaml"], "sub/tiny.yaml: no such file\n"),
        (["--space", "defalt.yaml"], "defalt.yaml: no such file — did you mean 'default.yaml'?\n  there are: "),
        (["--timeout", "5w"], "--timeout 5w: should be a time above 0 such as 90s, 30m, 8h or 2d\n"),
        (["--workers", "two"], "--workers two: "),
        (["--name", ""], "--name '': is empty: "),
    ],
)
def test_a_wrong_option(arguments, message, refused, space_file, recipe_file):
    options = {"--space": space_file().name, "--recipe": recipe_file.name, arguments[0]: arguments[1]}
    assert refused(*(text for pair in options.items() for text in pair)).startswith(message)


def test_every_error_of_a_recipe_is_in_the_one_message(refused, recipe_file):
    recipe_file.write_text("optim:\n  lr: -1\nmodle: {}\n")
    assert refused("tiny.yaml", "--set", "training.epochs=0", command="train").splitlines() == [
        "--set: training.epochs: should be greater than or equal to 1, not 0",
        "tiny.yaml:2: optim.lr: should be greater than 0, not -1",
        "tiny.yaml:3: modle: there is no such field — did you mean 'model'?",
    ]


def test_an_unknown_option_of_the_command_itself(elta_tune):
    for arguments in (["run", "--spce", "x"], ["run", "--trials", "none"], ["fly"], ["space", "check"]):
        done = elta_tune(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Usage: elta-tune" in done.stderr
        assert "Traceback" not in done.stderr


def test_more_missing_images_than_allowed(refused, own_data, recipe_file, space_file):
    for name in ("val_003.png", "val_007.png"):
        (own_data / "images" / name).unlink()
    message = refused("--space", space_file(), "--recipe", recipe_file)
    assert message.startswith(
        f"{own_data}/val.csv: 2 of 16 images are missing or unreadable, more than data.max_missing"
    )
    assert "'val_003.png'" in message


def test_a_row_that_is_not_right(refused, own_data, recipe_file):
    lines = (own_data / "train.csv").read_text().splitlines()
    name, *counts = lines[9].split(",")
    lines[9] = ",".join([name, counts[0], "many", *counts[2:]])
    (own_data / "train.csv").write_text("\n".join(lines) + "\n")
    message = refused(recipe_file, command="train")
    assert message.startswith(f"{own_data}/train.csv:10: count_2: 'many' is not a number")


def test_an_unknown_backbone(refused, recipe_file):
    message = refused(recipe_file, "--set", "model.backbone=resnet5O", command="train")
    assert message == "model.backbone: timm has no 'resnet5O' — did you mean 'resnet50'?\n"


def test_pool_image_that_is_in_validation_by_id_is_refused(refused, own_data, recipe_file):
    with (own_data / "pool.csv").open("a") as file:
        file.write("val_003.png\n")
    message = refused(recipe_file, command="train")
    assert message.startswith(f"{own_data}/pool.csv: 'val_003.png' is also in {own_data}/val.csv as 'val_003.png'")


def test_pool_image_that_is_in_validation_by_content_is_refused(refused, own_data, recipe_file, space_file):
    shutil.copy(own_data / "images" / "val_003.png", own_data / "images" / "pool_005.png")
    message = refused("--space", space_file(), "--recipe", recipe_file)
    assert message.startswith(f"{own_data}/pool.csv: 'pool_005.png' is also in {own_data}/val.csv as 'val_003.png'")


def test_a_device_that_is_not_here(refused, recipe_file, space_file):
    message = refused("--space", space_file(), "--recipe", recipe_file, "--devices", "cpu,cuda:99")
    assert message.startswith("--devices cuda:99: ")


@pytest.fixture
def study(tmp_path, recipe_file, space_file):
    """A study of the space and the recipe that was started and stopped before its first trial, with its command."""
    recipe = load_recipe(recipe_file)
    folder = StudyFolder(tmp_path / "runs" / "mine-tiny")
    record_plan(folder, make_plan(load_space(space_file(), recipe), recipe), {"study": "mine-tiny"})
    return "--space", "mine.yaml", "--recipe", "tiny.yaml"


def test_a_changed_space_or_recipe_under_the_name_of_a_study(study, refused, space_file):
    space_file(LR.replace("10x", "20x"))
    message = refused(*study, "--set", "simloss.weight=0.5", "--seed", "1")
    assert message.splitlines() == [
        "study mine-tiny was started with another configuration:",
        "  space.parameters.optim.lr.high: 0.03 → 0.06",
        "  recipe.seed: 0 → 1",
        "  recipe.simloss.weight: 1.0 → 0.5",
        "  start another study: --name NAME; or go on with this one by the command that started it",
    ]


def test_a_budget_below_that_of_a_study(study, refused):
    message = refused(*study, "--trials", "1")
    assert message.startswith("--trials 1: the study's budget is 2 already, and may only be raised")


def test_a_study_whose_file_is_damaged(study, refused, tmp_path):
    (tmp_path / "runs" / "mine-tiny" / "study.yaml").write_text("space: {parameters: {optim.lr")
    assert refused(*study).startswith(f"{tmp_path}/runs/mine-tiny/study.yaml:1: not a YAML document: ")


HEAD = "model.head: emd needs ratings with a distribution; these have scores only"
COMMANDS = {
    "data check": ("data", "check", "tiny.yaml"),
    "data check, labels": ("data", "check", "tiny.yaml", "--labels-only"),
    "space check": ("space", "check", "head.yaml", "--recipe", "tiny.yaml"),
    "train": ("train", "tiny.yaml"),
    "run": ("run", "--space", "head.yaml", "--recipe", "tiny.yaml"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_data_with_the_same_message(name, elta_tune, recipe_file, data_root, tmp_path):
    """Scores alone and a head of distributions: found before images, hubs and weights are looked at."""
    for split in ("train", "val"):
        ids = [line.split(",")[0] for line in (data_root / f"{split}.csv").read_text().splitlines()[1:]]
        rows = [f"{name},{1 + number % 5}" for number, name in enumerate(ids)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["name,MOS", *rows]) + "\n")
    (tmp_path / "head.yaml").write_text("parameters:\n  optim.lr: {type: float, low: 1.0e-4, high: 1.0e-1}\n")
    settings = {"data.root": tmp_path, "data.images": data_root / "images", "data.scale": "[1,5]"}
    settings |= {"training.batch_size": 5000, "model.backbone": "test_resnet", "model.pretrained": "true"}
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    done = elta_tune(*COMMANDS[name], *options)
    assert done.returncode == 2
    assert f"- {HEAD}\n  predict scores: --set model.head=mse; or spread" in done.stderr
    assert "- training.batch_size: 5000 is more than the 32 images of " in done.stderr
