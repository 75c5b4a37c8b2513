"""The verbs from Python give what the command gives, and need no more of a script than the call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import elta_tune
from elta_tune.errors import ConfigError, StudyError
from elta_tune.files import to_json
from elta_tune.results.tables import json_line
from elta_tune.studies.events import Finished

Run = Callable[..., Any]
SPACE: dict[str, Any] = {
    "budget": {"trials": 2},
    "sampler": {"name": "random"},
    "pruner": {"name": "none"},
    "parameters": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
}
SCRIPT = """\
import elta_tune
print("script", __name__, flush=True)
study = elta_tune.run("space.yaml", "tiny.yaml", overrides={"self_training.rounds": 0}, devices=["cpu"], workers=2)
assert len(study.results) == 2
print(study.best.value)
"""
TYPED = """\
import elta_tune
from elta_tune.records import EpochRecord, TrialResult

def report(record: EpochRecord) -> None: ...

study = elta_tune.run("a.yaml", overrides={"seed": 1}, on_event=lambda event: None)
value: float = elta_tune.best(study)["value"]
result: TrialResult = elta_tune.train("a.yaml", on_epoch=report)
metrics: dict[str, float] = elta_tune.evaluate("best.ckpt", split="test").metrics
scores: list[float | None] = [one.score for one in elta_tune.predict("best.ckpt", ["photos"])]
study.export("ckpt", "best.ckpt")
"""


@pytest.fixture(scope="module")
def _scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripted")


@pytest.fixture
def here(_scripted: Path, recipe_file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: `tiny.yaml`, `space.yaml`, and the study that the script ran there."""
    monkeypatch.setenv("ELTA_TUNE_CACHE", str(cache))
    monkeypatch.chdir(_scripted)
    if not Path("script.py").exists():
        Path("tiny.yaml").write_text(recipe_file.read_text())
        Path("space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
        Path("script.py").write_text(SCRIPT)
        done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        Path("output.txt").write_text(done.stdout)
        Path("errors.txt").write_text(done.stderr)
    return _scripted


@pytest.fixture
def command_here(here: Path) -> Run:
    """Runs the command there and returns its standard output."""

    def run(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("elta-tune")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_script_runs_a_study_at_its_top_level_and_once(here: Path) -> None:
    """Its trials' processes do not run the script again, though it does not ask whether it is `__main__`."""
    first, *rest = Path("output.txt").read_text().splitlines()
    assert (first, len(rest)) == ("script __main__", 1)
    assert Path("errors.txt").read_text() == ""
    logs = [path.read_text() for path in here.glob("runs/space-tiny/trials/*/log.txt")]
    assert len(logs) == 2
    assert not any("script" in log for log in logs)
    assert float(rest[0]) == max(json.loads(path.read_text())["value"] for path in here.rglob("result.json"))


def test_best_is_what_the_command_prints(command_here: Run) -> None:
    assert elta_tune.best() == elta_tune.best("space-tiny") == json.loads(command_here("best", "--json"))


def test_show_gives_what_the_command_prints(command_here: Run) -> None:
    assert json.loads(to_json(elta_tune.show("space-tiny"))) == json.loads(command_here("show", "--json"))
    assert json.loads(to_json(elta_tune.show(trial=0))) == json.loads(command_here("show", "0", "--json"))
    with pytest.raises(StudyError, match="study space-tiny has no trial 7"):
        elta_tune.show("space-tiny", 7)


def test_study_continues_with_a_larger_budget_as_in_the_cli(here: Path, command_here: Run) -> None:
    """On a copy under another name: three trials from here, of which the command finds none left to do."""
    heard: list[Any] = []
    asked: dict[str, Any] = {"overrides": {"self_training.rounds": 0}, "name": "other", "devices": ["cpu"]}
    first = elta_tune.run("space.yaml", "tiny.yaml", trials=1, **asked)
    assert [result.trial for result in first.results] == [0]
    study = elta_tune.run("space.yaml", "tiny.yaml", trials=2, on_event=heard.append, **asked)
    assert [event.result.trial for event in heard if isinstance(event, Finished)] == [1]
    assert max(len(repr(event)) for event in heard) <= 120, heard  # for `on_event=print`
    assert elta_tune.run("space.yaml", "tiny.yaml", **asked).results == study.results
    words = ("run", "--space", "space.yaml", "--recipe", "tiny.yaml", "--name", "other", "--trials", "2")
    output = command_here(*words, "--set", "self_training.rounds=0")
    assert output.startswith("study other is finished: 2 of 2 trials")

    frame = study.dataframe()
    results = json.loads(command_here("show", "other", "--json"))["results"]
    assert frame["trial"].tolist() == [0, 1]
    assert frame["optim.lr"].tolist() == [result["params"]["optim.lr"] for result in results]
    assert frame["plcc"].tolist() == [result["metrics"]["plcc"] for result in results]
    assert isinstance(frame, pd.DataFrame)
    with pytest.raises(StudyError, match="was started with another configuration"):
        elta_tune.run("space.yaml", "tiny.yaml", **asked, seed=7)


def test_exported_best_trial_evaluates_as_with_the_command(here: Path, command_here: Run, data_root: Path) -> None:
    study = elta_tune.api.Study.open("space-tiny")
    assert study.export("ckpt", "best.ckpt", force=True) <= 1e-5
    with pytest.raises(StudyError, match="already exists"):
        study.export("ckpt", "best.ckpt")
    for split in ("val", "test"):
        found = elta_tune.evaluate("best.ckpt", split=split, device="cpu")
        output = json.loads(command_here("evaluate", "best.ckpt", "--split", split, "--json", "--device", "cpu"))
        assert json.loads(to_json(found.metrics)) == output["metrics"]
        assert found.data == output["data"]
    assert elta_tune.evaluate("space-tiny", device="cpu").metrics["srcc"] == pytest.approx(study.best.value)

    (here / "photos").mkdir(exist_ok=True)
    for name in ("val_000.png", "val_001.png"):
        (here / "photos" / name).write_bytes((data_root / "images" / name).read_bytes())
    (here / "photos" / "torn.jpg").write_bytes(b"no image")
    output = command_here("predict", "best.ckpt", "photos", "--sort", "--json", "--device", "cpu")
    lines = [json_line(one) for one in elta_tune.predict("best.ckpt", "photos", sort=True, device="cpu")]
    assert [json.loads(line) for line in lines] == [json.loads(line) for line in output.splitlines()]
    assert "torn.jpg" in lines[-1]


def test_training_matches_the_command(here: Path, command_here: Run) -> None:
    epochs: list[Any] = []
    result = elta_tune.train(
        "tiny.yaml", overrides={"training.epochs": 3}, out="mine", device="cpu", on_epoch=epochs.append
    )
    assert json.loads(to_json(result.to_dict())) == json.loads((here / "mine" / "result.json").read_text())
    recorded = (here / "mine" / "metrics.jsonl").read_text().splitlines()
    assert [record.step for record in epochs] == [json.loads(line)["step"] for line in recorded]
    assert len(epochs) >= 3
    command_here("train", "tiny.yaml", "--set", "training.epochs=3", "--out", "typed", "--device", "cpu")
    content = json.loads(to_json(result.to_dict()))
    typed = json.loads((here / "typed" / "result.json").read_text())
    assert {name: content[name] for name in ("state", "best_step", "data", "model")} == {
        name: typed[name] for name in ("state", "best_step", "data", "model")
    }
    assert result.metrics["srcc"] == pytest.approx(typed["metrics"]["srcc"])


def test_trial_is_trained_again_and_its_predictions_measured(here: Path) -> None:
    ready: list[bool] = []
    again = elta_tune.train(
        source="space-tiny:0", overrides={"seed": 5}, device="cpu", on_ready=lambda: ready.append(True)
    )
    assert ready == [True]
    (folder,) = (here / "runs").glob("train-*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 5
    found = elta_tune.evaluate(from_predictions=folder / "predictions.csv")
    assert found.metrics["srcc"] == pytest.approx(again.metrics["srcc"], abs=1e-9)
    with pytest.raises(ConfigError, match="either a recipe, or"):
        elta_tune.train()
    with pytest.raises(ConfigError, match="either a model, or"):
        elta_tune.evaluate("space-tiny", from_predictions=folder / "predictions.csv")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, r"^`batch_size=0`: should be 1 or more$"),
        ({"paths": []}, r"^predict: name at least one image, folder or table$"),
        ({"overrides": {"data.format": "ava"}}, r"^`overrides`: data\.format: has no effect here"),
    ],
)
def test_input_that_cannot_be_predicted_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        elta_tune.predict(**{"model": "no-model", "paths": tmp_path, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"trials": 0}, "`trials=0`: should be 1 or more"),
        ({"timeout": "5w"}, "timeout 5w: should be a time above 0"),
        ({"overrides": {"optim.lrr": 1}}, "optim.lrr: there is no such field"),
        ({"workers": 0}, "should be at least one of each"),
        ({"devices": []}, "should be at least one of each"),
        ({"space": "spac.yaml"}, "did you mean 'space.yaml'"),
    ],
)
def test_study_that_cannot_run_is_refused_and_leaves_no_file(here: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        elta_tune.run(**{"space": "space.yaml", "recipe": "tiny.yaml", "name": "refused", **wrong})
    assert not (here / "runs" / "refused").exists()


def test_the_import_is_light_and_names_the_verbs() -> None:
    code = (
        "import sys, elta_tune; elta_tune.run; print(dir(elta_tune)); from elta_tune import *; predict;"
        "sys.exit(bool({'torch', 'numpy', 'optuna', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"run", "train", "evaluate", "predict", "best"} <= set(eval(done.stdout))
    with pytest.raises(AttributeError, match="has no attribute 'fly'"):
        _ = elta_tune.fly


def test_a_script_is_checked_by_mypy(tmp_path: Path) -> None:
    """Of the package itself only what is imported is looked at; the cache is the checkout's."""
    root = Path(elta_tune.__file__).parents[1]
    script, wrong = tmp_path / "typed.py", tmp_path / "wrong.py"
    script.write_text(TYPED)
    wrong.write_text('import elta_tune\nelta_tune.run("a.yaml", trials="three")\nelta_tune.train("a.yaml", epochs=3)\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", str(root / "pyproject.toml")]
    environment = {**os.environ, "MYPY_CACHE_DIR": str(root / ".mypy_cache")}
    done = subprocess.run(
        [*command, script, wrong], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.partition(": error: ")[0].rpartition("/")[2] for line in errors] == ["wrong.py:2", "wrong.py:3"], done
