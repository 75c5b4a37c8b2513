"""A study whose data folder or weights were moved continues if they are the same, and is refused if not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from elta_tune.records import StudyFolder

SPACE = {
    "parameters": {"optim.lr": {"type": "float", "low": 2e-3, "high": 4e-3, "log": True}},
    "pruner": {"name": "none"},
}


@pytest.fixture
def started(command: Any, recipe_file: Path, data_root: Path, tmp_path: Path) -> StudyFolder:
    """A study of one trial, whose data folder was then moved."""
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    shutil.copytree(data_root, tmp_path / "old")
    assert run(command, tmp_path / "old", 1).returncode == 0
    (tmp_path / "old").rename(tmp_path / "new")
    return StudyFolder(tmp_path / "runs" / "mine")


def run(command: Any, root: Path, trials: int) -> Any:
    fast = ("--set", "training.epochs=1", "--executor", "inline", "--workers", "1")
    names = ("--space", "space.yaml", "--recipe", "tiny.yaml", "--name", "mine")
    return command("run", *names, "--trials", str(trials), "--set", f"data.root={root}", *fast)


def test_study_continues_with_a_moved_data_folder(started: StudyFolder, command: Any, tmp_path: Path) -> None:
    before = started.trial(0).result_file.read_bytes()
    assert run(command, tmp_path / "new", 2).returncode == 0
    assert started.trial(0).result_file.read_bytes() == before
    assert [(result.state, result.reason) for result in started.results()] == [("complete", None)] * 2
    for number, trial in started.trials():
        assert trial.config().data.root == tmp_path / "new", number
    measured = command("evaluate", "mine:0", "--split", "val", "--json")
    assert json.loads(measured.stdout)["metrics"]["srcc"] == started.results()[0].metrics["srcc"]


def test_finished_study_takes_a_moved_data_folder(started: StudyFolder, command: Any, tmp_path: Path) -> None:
    done = run(command, tmp_path / "new", 1)
    assert (done.returncode, "is finished" in done.stdout) == (0, True)
    assert started.trial(0).config().data.root == tmp_path / "new"


@pytest.mark.parametrize("what", ["ratings", "images"])
def test_changed_content_is_refused_with_the_difference(
    what: str, started: StudyFolder, command: Any, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    if what == "ratings":
        lines = (new / "train.csv").read_text().splitlines()
        lines[1] = lines[1].partition(",")[0] + ",1,0,0,0,0"
        (new / "train.csv").write_text("\n".join(lines) + "\n")
    else:
        shutil.copy(new / "images" / "train_001.png", new / "images" / "train_000.png")
    files = {path: path.read_bytes() for path in started.path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    done = run(command, new, 2)
    assert done.returncode == 2
    assert ("rows" if what == "ratings" else "images") + " of train differ" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert {path: path.read_bytes() for path in files} == files


def test_study_of_an_older_version_is_compared_by_its_results(
    started: StudyFolder, command: Any, tmp_path: Path
) -> None:
    content = yaml.safe_load(started.study_file.read_text())
    del content["content"]
    started.study_file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert run(command, tmp_path / "new", 2).returncode == 0
