"""What MODEL and STUDY[:TRIAL] mean on the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sample_records import trial_result

from elta_tune.config import TrialConfig, load_recipe
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import StudyError
from elta_tune.files import write_json
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.results.sources import find_trial, load_model
from elta_tune.trial import NoReporter, run_trial


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, labelled: TrialConfig, cache: Path) -> Path:
    """A study of two trials, of which the second is the better one, and a trial of its own."""
    runs = tmp_path_factory.mktemp("sources") / "runs"
    study = StudyFolder(runs / "first")
    space = {"parameters": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}}, "objective": {"metric": "mae"}}
    plan = {"space": space, "recipe": labelled.model_dump(mode="json"), "study": "first"}
    study.create(yaml.safe_dump(plan))
    config = labelled.replace({"evaluation.metric": "mae", "evaluation.direction": "minimize"})
    for number, rate in enumerate((1e-9, 3e-3)):
        run_trial(
            config.replace({"optim.lr": rate}),
            study.trial(number),
            NoReporter(),
            cache=ImageCache(cache),
            number=number,
        )
    run_trial(config, TrialFolder(runs / "train-own"), NoReporter(), cache=ImageCache(cache))
    return runs


def test_a_study_is_its_best_trial_and_a_number_any(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = find_trial("first", runs)
    values = [TrialFolder(runs / "first" / "trials" / f"000{number}").result().value for number in (0, 1)]  # type: ignore[union-attr]
    assert best.folder.path.name == f"000{values.index(min(values))}"
    assert find_trial("first:0", runs).folder.path == (runs / "first" / "trials" / "0000").absolute()
    assert find_trial("first:0", runs).name == "first-0"
    monkeypatch.chdir(runs)
    for reference in ("first/trials/0001", str(runs / "first" / "trials" / "0001")):
        assert find_trial(reference, runs).name == "first-1"
    alone = find_trial("train-own", Path())
    assert (alone.study, alone.name) == (None, "train-own")


@pytest.mark.parametrize(
    ("reference", "message"),
    [("first:7", "has no trial 7"), ("fist", "did you mean 'first'"), ("first:x", "no study 'first:x'")],
)
def test_missing_files_are_reported(reference: str, message: str, runs: Path) -> None:
    with pytest.raises(StudyError, match=message):
        load_model(reference, runs)


def test_study_whose_name_looks_like_a_trial_is_found(runs: Path, tmp_path: Path) -> None:
    odd = tmp_path / "first:1"
    shutil.copytree(runs / "first", odd)
    assert find_trial("first:1", tmp_path).study == "first:1"
    assert find_trial("first:1:0", tmp_path).name == "first:1-0"
    shutil.copytree(runs / "first", tmp_path / "first")
    with pytest.raises(StudyError, match="names a study and trial 1 of study first") as refused:
        find_trial("first:1", tmp_path)
    for folder in (odd, tmp_path / "first" / "trials" / "0001"):
        assert str(folder) in str(refused.value.hint)
        assert find_trial(str(folder), tmp_path)


def test_a_trial_that_has_not_ended_or_failed_has_no_model(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "train-own", tmp_path / "copy")
    folder = TrialFolder(tmp_path / "copy")
    result = folder.result()
    folder.result_file.unlink()
    with pytest.raises(StudyError, match="has not ended"):
        load_model(str(folder.path), runs)
    write_json(folder.result_file, trial_result(None, "failed", reason="no memory").to_dict())
    with pytest.raises(StudyError, match="the trial failed: no memory"):
        load_model(str(folder.path), runs)
    assert result is not None
    write_json(folder.result_file, result.to_dict())
    folder.best_file.write_bytes(b"torn")
    with pytest.raises(StudyError, match="the weights of the trial can't be read"):
        load_model(str(folder.path), runs)


def test_the_weights_in_a_trials_folder_are_the_trial(runs: Path) -> None:
    trial = TrialFolder(runs / "first" / "trials" / "0001")
    by_folder, by_file = load_model(str(trial.path), runs), load_model(str(trial.best_file), runs)
    assert by_file.source == by_folder.source
    assert find_trial(str(trial.best_file), runs).name == "first-1"


@pytest.mark.parametrize("reference", ["best.ckpt", "runs/first/trials/0001/best.ckpt"])
def test_mistyped_file_is_reported_as_one(reference: str, runs: Path) -> None:
    with pytest.raises(StudyError) as refused:
        load_model(reference, runs)
    message = f"{reference}: there is no such file or trial, and there is no study {reference!r} in {runs}"
    assert refused.value.message.startswith(message)


def test_trial_that_failed_before_its_first_epoch_has_a_cause(
    runs: Path, cache: Path, data_root: Path, tmp_path: Path
) -> None:
    config = load_recipe(runs / "train-own" / "config.yaml").replace(
        {"optim.lr": 1e30, "training.precision": "float32"}
    )
    folder = TrialFolder(tmp_path / "diverged")
    assert run_trial(config, folder, NoReporter(), cache=ImageCache(cache)).state == "failed"
    with pytest.raises(StudyError, match=r"diverged: the trial failed: the loss became"):
        load_model(str(folder.path), runs)


def test_a_trial_is_trained_again_with_changes(runs: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    done = command("train", "--from", "first:1", "--set", "training.epochs=2", "--set", "seed=5", "--runs", runs)
    assert done.returncode == 0, done.stderr
    again = TrialFolder(runs / "train-first-1")
    trained, before = load_recipe(again.config_file), load_recipe(runs / "first" / "trials" / "0001" / "config.yaml")
    assert trained == before.replace({"training.epochs": 2, "seed": 5})
    assert len(again.epochs()) == 2
    other = command("train", "--from", "first:1", "--set", "seed=6", "--runs", runs)
    assert (other.returncode, "another configuration" in other.stderr) == (2, True)
    both = command("train", "own.yaml", "--from", "first:1", "--runs", runs)
    assert (both.returncode, "either a recipe, or --from" in both.stderr) == (2, True)


def test_the_commands_take_a_trial_of_a_study(runs: Path, command: Callable[..., Any]) -> None:
    by_number = json.loads(command("evaluate", "first:1", "--json", "--runs", runs).stdout)
    result = TrialFolder(runs / "first" / "trials" / "0001").result()
    assert result is not None
    assert by_number["metrics"] == pytest.approx(result.metrics, abs=1e-5)
