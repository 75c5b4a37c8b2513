"""Shipped recipes and spaces fit, say how to run them, stay finite at their corners, and are in the wheel."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import product
from pathlib import Path

import pytest
import torch
import typer.main
import yaml

from elta_tune.cli import app
from elta_tune.config import FIELDS, TrialConfig, load_recipe
from elta_tune.method.losses import emd_loss, similarity_loss
from elta_tune.method.mixup import mix
from elta_tune.method.sharpening import sharpen
from elta_tune.space.check import load_space
from elta_tune.studies.plan import make_plan

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "trials").glob("*.yaml"))
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
CLAIMS = [(space, recipe) for space in SPACES for recipe in RECIPES if space.stem == "default" or recipe.stem == "ava"]


def by_stem(path):
    return path.stem


def commands(file):
    """The commands of the comment that opens a file, each a line further in; what follows in (…) is said of it."""
    comment = re.match(r"(#.*\n)+", file.read_text())[0]
    return [found[1].split() for found in re.finditer(r"^#   elta-tune (.+?)(?:\s+\(.*\))?$", comment, re.MULTILINE)]


def recipe_for(space, recipe):
    """A recipe with the model that the command of a space asks for."""
    ((_, *arguments),) = commands(space)
    return load_recipe(recipe, [text for text in arguments if text.startswith("model.")])


def test_the_files_that_are_promised_ship():
    assert {"demo", "own", "ava"} <= {file.stem for file in RECIPES}
    assert {"default", "elta_paper", "head", "head_mse"} <= {file.stem for file in SPACES}


@pytest.mark.parametrize("file", RECIPES, ids=by_stem)
def test_a_recipe_is_complete_where_it_matters(file):
    """Of each feature that ELTA's users come for, the recipe says what it does, not the defaults."""
    content = yaml.safe_load(file.read_text())
    load_recipe(file)
    named = {f"{section}.{name}" for section, body in content.items() if isinstance(body, dict) for name in body}
    decisive = {"model.backbone", "model.pretrained", "optim.name", "optim.lr", "optim.schedule", "simloss.weight"}
    decisive |= {"mixup.pairs", "mixup.tau_1", "mixup.tau_2", "mixup.alpha", "training.epochs", "training.batch_size"}
    decisive |= {"sharpening.temperature", "sharpening.threshold", "self_training.rounds", "self_training.epochs"}
    decisive |= {"data.resize", "data.crop"}
    assert decisive <= named
    assert "seed" in content


@pytest.mark.parametrize("file", [*RECIPES, *SPACES], ids=by_stem)
def test_a_file_opens_with_commands_that_exist(file):
    run = typer.main.get_command(app).commands["run"]
    found = commands(file)
    assert found
    for command, *arguments in found:
        assert command == "run"
        given = run.make_context("run", list(arguments)).params
        recipe, space = ROOT / "trials" / given["recipe"], ROOT / "search_spaces" / given["space"]
        assert file in (recipe, space)
        assert recipe in RECIPES
        assert space in SPACES
        assert {text.partition("=")[0] for text in given["overrides"] or ()} <= FIELDS.keys()
        config = load_recipe(recipe, given["overrides"] or ())
        make_plan(load_space(space, config), config)


@pytest.mark.parametrize(("space", "recipe"), CLAIMS, ids=by_stem)
def test_a_space_fits_the_recipes_that_it_claims(space, recipe):
    config = recipe_for(space, recipe)
    loaded = load_space(space, config)
    first = loaded.guesses(config)[0]
    assert config.replace(first) == config
    for guess in loaded.guesses(config):
        config.replace(guess)


def test_default_space_varies_the_main_fields():
    config = load_recipe(ROOT / "trials" / "demo.yaml")
    space = load_space(ROOT / "search_spaces" / "default.yaml", config)
    four = {"mixup.alpha", "simloss.weight", "sharpening.temperature", "self_training.rounds"}
    assert space.parameters.keys() == four | {"optim.lr", "mixup.tau_1", "mixup.tau_2", "sharpening.threshold"}
    assert space.parameters["mixup.alpha"].choices == (0.2, 0.5, 1, 2, 8, None)  # docs/method.md §1
    assert space.budget.trials >= 12
    assert make_plan(space, config).note is None  # the demo has a pool


def test_space_of_each_head_varies_its_live_fields():
    ava = ROOT / "trials" / "ava.yaml"
    files = {head: ROOT / "search_spaces" / name for head, name in (("emd", "head.yaml"), ("mse", "head_mse.yaml"))}
    spaces = {head: load_space(file, recipe_for(file, ava)) for head, file in files.items()}
    emd, mse = (space.parameters for space in spaces.values())
    assert emd.keys() - mse.keys() == {"model.hidden_size", "training.emd_reduction"}
    assert mse.keys() - emd.keys() == {"model.dropout"}
    assert all(emd[name] == mse[name] for name in emd.keys() & mse.keys())


def test_the_papers_space_is_the_published_grid():
    """docs/method.md §6."""
    space = load_space(ROOT / "search_spaces" / "elta_paper.yaml", load_recipe(ROOT / "trials" / "ava.yaml"))
    assert {name: parameter.choices for name, parameter in space.parameters.items()} == {
        "training.batch_size": (16, 48),
        "optim.lr": (1e-5, 1e-4),
        "simloss.weight": (0.01, 0.1, 0.2, 0.5, 1, 5, 10, 100),
        "mixup.tau_1": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
        "mixup.tau_2": (2, 3, 4, 5, 6, 7, 10),
    }
    assert (space.sampler.name, space.objective.resolved_direction, space.budget.trials) == ("tpe", "maximize", 8)
    assert space.pruner.name == "none"


def test_ava_is_the_released_readmes_training():
    """docs/method.md §6: the released defaults, with TFA on and the similarity loss at 1."""
    released = {
        "model.backbone": "swinv2_base_window8_256",
        "model.pretrained": True,
        "model.head": "emd",
        "model.hidden_size": 64,
        "optim.name": "adam",
        "optim.lr": 1e-5,
        "optim.backbone_lr_factor": 1.0,
        "optim.weight_decay": 0.0,
        "optim.schedule": "constant",
        "optim.warmup_epochs": 0.0,
        "training.batch_size": 48,
        "training.epochs": 20,
        "training.emd_reduction": "batch",
        "data.resize": 300,
        "data.crop": 256,
        "mixup.pairs": 1,
        "mixup.tau_1": 0.5,
        "mixup.tau_2": 2.0,
        "mixup.alpha": None,
        "simloss.weight": 1.0,
        "sharpening.temperature": 1.25,
        "sharpening.threshold": 0.75,
        "sharpening.target": "raw",
        "self_training.rounds": 0,
        "self_training.init": "continue",
    }
    config = load_recipe(ROOT / "trials" / "ava.yaml")
    assert {name: config.get(name) for name in released} == released
    assert config.replace({"simloss.weight": 0.0}) == TrialConfig()  # whose defaults are the released ones


def test_own_recipe_names_released_values_that_differ():
    own, released = load_recipe(ROOT / "trials" / "own.yaml"), load_recipe(ROOT / "trials" / "ava.yaml")
    said, section = {}, ""
    for line in (ROOT / "trials" / "own.yaml").read_text().splitlines():
        section = found[1] if (found := re.match(r"(\w+):", line)) else section
        if found := re.match(r"  (\w+): .*# released: (\S+)$", line):
            said[f"{section}.{found[1]}"] = yaml.safe_load(found[2])
    differing = {name: released.get(name) for name in FIELDS if own.get(name) != released.get(name)}
    assert said == differing
    assert own.data.crop <= 96  # sized for a CPU
    assert own.training.epochs <= 8


def extremes(parameter):
    """The lowest and highest value, and NaN."""
    numbers = [value for value in parameter.probes() if isinstance(value, int | float)]
    return [min(numbers), max(numbers), *(value for value in parameter.probes() if value not in numbers)]


def corners(space, section):
    """The extremes of what a space varies of a section, in every combination, as keyword arguments."""
    varied = {name: extremes(one) for name, one in space.parameters.items() if name.startswith(f"{section}.")}
    for values in product(*varied.values()):
        yield {name.rpartition(".")[2]: value for name, value in zip(varied, values, strict=True)}


SCORES = {
    "equal": lambda size: torch.full((size,), 5.3),
    "twins at both ends": lambda size: torch.tensor([1.0, 10.0, 1.0, 10.0] * 12)[:size],
    "one apart": lambda size: torch.tensor([5.0] * 47 + [9.9])[-size:],
}


@pytest.fixture(params=SPACES, ids=by_stem)
def space(request):
    return load_space(request.param, recipe_for(request.param, ROOT / "trials" / "ava.yaml"))


@pytest.mark.parametrize("size", [1, 2, 48])
@pytest.mark.parametrize("scores", SCORES)
def test_losses_and_gradients_are_finite_at_space_corners(space, scores, size):
    generator = torch.Generator().manual_seed(0)
    found = list(corners(space, "mixup"))
    assert any(corner["tau_2"] == 10 for corner in found)
    for corner in found:
        features = torch.randn(size, 8, generator=generator, requires_grad=True)
        labels = torch.randn(size, 10, generator=generator).softmax(dim=1)
        mixed, targets, mixed_scores = mix(features, labels, SCORES[scores](size), generator=generator, **corner)
        assert len(mixed) == size + (min(corner.get("pairs", 1), size) if size > 1 else 0)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(targets)))
        task = emd_loss((mixed @ torch.ones(8, 10)).softmax(dim=1), targets)
        weight = max(extremes(space.parameters["simloss.weight"])) if "simloss.weight" in space.parameters else 1.0
        loss = task + weight * similarity_loss(mixed, mixed_scores)
        (gradient,) = torch.autograd.grad(loss, features)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_sharpened_labels_are_distributions_at_space_corners():
    space = load_space(ROOT / "search_spaces" / "default.yaml", load_recipe(ROOT / "trials" / "ava.yaml"))
    logits = 20 * torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    for scores, corner in product((score(48) for score in SCORES.values()), corners(space, "sharpening")):
        sharpened = sharpen(logits[:48], scores, corner["temperature"])
        torch.testing.assert_close(sharpened.sum(dim=1), torch.ones(48))


def test_the_wheel_has_the_recipes_and_spaces_and_finds_them(tmp_path):
    """Built, installed and run without a checkout, only from uv's cache."""
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    build = [uv, "build", "--wheel", "--offline", "--quiet", "--out-dir", str(tmp_path), str(ROOT)]
    built = subprocess.run(build, capture_output=True, text=True, timeout=120, check=False)
    if "hatchling" in built.stderr and built.returncode:
        pytest.skip("the build back end is not in uv's cache")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for file in (*RECIPES, *SPACES):
        assert f"elta_tune/shipped/{file.relative_to(ROOT).as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests", "runs"))]
    code = "from elta_tune.documents import find_document as find; print(find('default.yaml', 'search_spaces'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "installed/elta_tune/shipped/search_spaces/default.yaml") in done.stdout
