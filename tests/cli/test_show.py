"""`elta-tune list` and `show`: what is in the folders, whole, within 80 columns, and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from elta_tune.records import StudyFolder

Run = Callable[..., subprocess.CompletedProcess[str]]


def results(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((study / "trials").glob("*/result.json"))]


@pytest.mark.parametrize("study", [(), ("space-tiny",), ("runs/space-tiny",), ("--runs", "runs")])
def test_a_study_is_found_by_name_or_folder_or_is_the_last(
    elta_tune: Run, finished: Path, study: tuple[str, ...]
) -> None:
    done = elta_tune("show", *study)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("study space-tiny: maximize srcc; 4 of 4 trials, 0 pruned, 0 failed; finished\n")
    for result in results(finished):
        row = next(line for line in done.stdout.splitlines() if line.split()[:1] == [str(result["trial"])])
        values = [f"{result['metrics'][name]:.4f}" for name in ("srcc", "plcc", "accuracy")]
        assert row.split()[1:5] == ["complete", *values]
    assert max(len(line) for line in done.stdout.splitlines() if not line.endswith(str(finished))) <= 80


def test_the_last_study_is_the_one_that_changed_last(elta_tune: Run, finished: Path) -> None:
    shutil.copytree(finished, finished.with_name("older"))
    for path in finished.with_name("older").rglob("*"):
        os.utime(path, (1, 1))
    assert elta_tune("show").stdout.startswith("study space-tiny:")
    os.utime(finished.with_name("older") / "study.db")
    assert elta_tune("show").stdout.startswith("study older:")


@pytest.mark.parametrize("arguments", [("2",), ("space-tiny", "2"), ("runs/space-tiny", "2")])
def test_a_trial_is_shown_epoch_by_epoch(elta_tune: Run, finished: Path, arguments: tuple[str, ...]) -> None:
    done = elta_tune("show", *arguments)
    assert done.stdout.startswith("study space-tiny, trial 2: complete\n")
    lines = [json.loads(line) for line in (finished / "trials" / "0002" / "metrics.jsonl").read_text().splitlines()]
    shown = [line.split() for line in done.stdout.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]
    assert [row[:3] for row in shown] == [[str(line[name]) for name in ("step", "round", "epoch")] for line in lines]
    assert [row[5] for row in shown] == [f"{line['srcc']:.4f}" for line in lines]
    for name in results(finished)[2]["params"]:
        assert f"  {name} = " in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()[:-1]) <= 80  # the last is the trial's folder


def test_unfinished_trial_shows_its_epochs(elta_tune: Run, finished: Path) -> None:
    (finished / "trials" / "0003" / "result.json").unlink()
    rate = results(finished)[2]["params"]["optim.lr"]
    assert rate
    study = elta_tune("show").stdout
    assert "3 of 4 trials, 0 pruned, 0 failed; stopped" in study
    assert "trial 3 unfinished: step " in study
    trial = elta_tune("show", "3").stdout
    assert trial.startswith("study space-tiny, trial 3: unfinished\n  optim.lr = ")
    assert len([line for line in trial.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]) >= 5


def test_json_is_all_of_it(elta_tune: Run, finished: Path) -> None:
    study, trial, studies = (
        json.loads(elta_tune(*arguments, "--json").stdout) for arguments in (("show",), ("show", "1"), ("list",))
    )
    assert study["results"] == results(finished)
    assert (study["study"], study["state"], study["unfinished"]) == ("space-tiny", "finished", [])
    assert trial["result"] == results(finished)[1]
    assert len(trial["epochs"]) == len((finished / "trials" / "0001" / "metrics.jsonl").read_text().splitlines())
    best = max(results(finished), key=lambda result: result["value"])
    assert [(row["study"], row["ended"], row["budget"], row["value"]) for row in studies] == [
        ("space-tiny", 4, 4, best["value"])
    ]


def test_list_shows_all_studies(elta_tune: Run, finished: Path) -> None:
    lines = elta_tune("list").stdout.splitlines()
    row = next(line.split() for line in lines if "space-tiny" in line)
    best = max(results(finished), key=lambda result: result["value"])
    assert row == ["space-tiny", "finished", "4/4", "0", "0", "srcc", f"{best['value']:.4f}"]


def test_a_damaged_study_hides_no_other(elta_tune: Run, finished: Path) -> None:
    broken, torn = finished.parent / "broken", finished.parent / "torn"
    broken.mkdir()
    (broken / "study.yaml").write_text("space: [")
    shutil.copytree(finished, torn)
    (torn / "trials" / "0001" / "result.json").write_text("[]")
    done = elta_tune("list")
    assert done.returncode == 0
    rows = {words[0]: words[1] for line in done.stdout.splitlines() if len(words := line.split()) > 1}
    assert (rows["broken"], rows["torn"], rows["space-tiny"]) == ("damaged", "damaged", "finished")
    assert f"{broken.name}/study.yaml:1: not a YAML document" in done.stderr
    assert f"{torn.name}/trials/0001/result.json: is damaged" in done.stderr
    assert elta_tune("show", "torn").returncode == 2


def test_a_study_that_is_being_prepared_is_listed(elta_tune: Run, finished: Path) -> None:
    with StudyFolder(finished.parent / "prep").lock():
        assert [(row["study"], row["state"]) for row in json.loads(elta_tune("list", "--json").stdout)] == [
            ("space-tiny", "finished"),
            ("prep", "preparing"),
        ]
        assert any(line.split() == ["prep", "preparing"] for line in elta_tune("list").stdout.splitlines())
        assert f"study prep is being prepared (process {os.getpid()})" in elta_tune("show", "prep").stderr


def test_damaged_metrics_are_reported(elta_tune: Run, finished: Path) -> None:
    (finished / "trials" / "0001" / "metrics.jsonl").write_text("{}\n")
    done = elta_tune("show", "1")
    assert done.returncode == 2
    assert "runs/space-tiny/trials/0001/metrics.jsonl:1: is damaged: step: is missing\n" in done.stderr


def test_a_used_up_grid_is_finished(elta_tune: Run, finished: Path) -> None:
    text = (finished / "study.yaml").read_text()
    plan = yaml.safe_load(text)
    plan["space"] |= {"sampler": {"name": "grid"}, "budget": {"trials": 20}}
    plan["space"]["parameters"] = {"self_training.rounds": {"type": "int", "low": 0, "high": 1}}
    (finished / "study.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    row = json.loads(elta_tune("list", "--json").stdout)[0]
    assert (row["state"], row["budget"]) == ("finished", 2)


def test_without_a_study_commands_say_how_to_start_one(elta_tune: Run, tmp_path: Path) -> None:
    assert "there is no study in runs" in elta_tune("list").stdout
    assert json.loads(elta_tune("list", "--json").stdout) == []
    for command in ("show", "best"):
        done = elta_tune(command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "start one: elta-tune run" in done.stderr


def test_an_unknown_trial_is_refused(elta_tune: Run, finished: Path) -> None:
    done = elta_tune("show", "17")
    assert done.returncode == 2
    assert "study space-tiny has no trial 17" in done.stderr


@pytest.mark.parametrize("arguments", ["show", "show --json", "show 1", "list", "best --json", "--help"])
def test_a_reader_that_leaves_early_causes_no_traceback(finished: Path, arguments: str) -> None:
    """As `elta-tune show | head -1` does, and here a reader that reads nothing at all."""
    command = f"{Path(sys.executable).with_name('elta-tune')} {arguments} | true"
    done = subprocess.run(
        ["bash", "-c", command], cwd=finished.parents[1], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""


def test_help_imports_no_torch() -> None:
    code = """
import sys
from elta_tune.cli import main
sys.argv = ["elta-tune", "--help"]
try:
    main()
except SystemExit:
    print([name for name in ("torch", "optuna", "pandas", "scipy", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "Usage: elta-tune" in done.stdout
