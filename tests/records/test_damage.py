"""A damaged file makes an unfinished trial start again; an unreadable one stops it and is kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import DamagedError, StudyError, UnreadableError
from elta_tune.records import EpochRecord, StudyFolder, TrialFolder
from elta_tune.trial import NoReporter, TrialStopped, record_failure, run_trial


class StopAt:
    """Stops a trial after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def report(self, record: EpochRecord) -> None:
        if record.step == self.step:
            raise TrialStopped


@pytest.fixture(scope="module")
def rounds(data_root: Path) -> TrialConfig:
    """One epoch on the labels, two rounds of one epoch."""
    return TrialConfig.model_validate(
        {
            "data": {"root": str(data_root), "resize": 36, "crop": 32},
            "model": {"backbone": "test_efficientnet", "pretrained": False},
            "optim": {"lr": 3e-3},
            "training": {"epochs": 1, "batch_size": 8},
            "self_training": {"rounds": 2, "epochs": 1},
            "sharpening": {"threshold": 0.2},
        }
    )


@pytest.fixture(scope="module")
def trials(rounds: TrialConfig, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stopped`, a trial after its second epoch, and `whole`, the same one to its end. Tests only read them."""
    folder = tmp_path_factory.mktemp("trials")
    with pytest.raises(TrialStopped):
        run_trial(rounds, TrialFolder(folder / "stopped"), StopAt(2), cache=ImageCache(cache))
    run_trial(rounds, TrialFolder(folder / "whole"), NoReporter(), cache=ImageCache(cache))
    return folder


@pytest.fixture
def stopped(trials: Path, tmp_path: Path) -> TrialFolder:
    """A copy of the stopped trial, which a test may damage."""
    return TrialFolder(shutil.copytree(trials / "stopped", tmp_path / "trial"))


FILES = ("config.yaml", "metrics.jsonl", "last.ckpt", "best.safetensors", "pseudo_labels/round_1.csv")
DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "100 bytes": lambda content: content[:100],
    "half": lambda content: content[: len(content) // 2],
    "all but one": lambda content: content[:-1],
    "garbage": lambda content: bytes(range(256)) * (len(content) // 256 + 1),
    "zeros": lambda content: bytes(len(content)),
}


def damage_file(file: Path, damage: str) -> bool:
    """Damages a file; returns whether that does no harm: the recipe is known, and the checkpoint has the last line."""
    content = DAMAGE[damage](file.read_bytes())
    file.unlink() if content is None else file.write_bytes(content)
    return (file.name == "config.yaml" and content is None) or (
        file.name == "metrics.jsonl" and (content or b"").startswith(b'{"step": 1') and b"\n" in (content or b"")
    )


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_found_and_named(stopped: TrialFolder, name: str, damage: str) -> None:
    file = stopped.path / name
    assert stopped.restart_if_damaged() is None
    is_harmless = damage_file(file, damage)
    line = stopped.restart_if_damaged()
    if is_harmless:
        assert line is None
        assert stopped.last_file.exists()
    else:
        assert line is not None and "\n" not in line
        assert line.startswith(str(file)) and line.endswith("; the trial begins again")
        assert line in stopped.log_file.read_text()
        assert not stopped.last_file.exists() and stopped.epochs() == []
    assert stopped.restart_if_damaged() is None


@pytest.mark.parametrize(("name", "damage"), [(name, "half") for name in FILES] + [("metrics.jsonl", "garbage")])
def test_a_damaged_trial_ends_as_an_undisturbed_one(
    stopped: TrialFolder, trials: Path, rounds: TrialConfig, cache: Path, name: str, damage: str
) -> None:
    damage_file(stopped.path / name, damage)
    run_trial(rounds, stopped, NoReporter(), cache=ImageCache(cache))
    results: list[dict[str, Any]] = []
    for path in (stopped.path, trials / "whole"):
        content = json.loads((path / "result.json").read_text())
        results.append({key: value for key, value in content.items() if key not in ("seconds", "environment")})
    assert results[0] == results[1]
    for file in ("best.safetensors", "predictions.csv", "config.yaml", "pseudo_labels/round_1.csv"):
        assert (stopped.path / file).read_bytes() == (trials / "whole" / file).read_bytes()


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", FILES)
def test_an_unreadable_file_stops_the_trial_untouched(
    stopped: TrialFolder, rounds: TrialConfig, cache: Path, name: str, make: Callable[[Path], object]
) -> None:
    file = stopped.path / name
    file.unlink()
    make(file)
    before = {path for path in stopped.path.rglob("*") if path.is_file()}
    with pytest.raises(UnreadableError, match=f"/{name}: (not a regular file|Is a directory)"):
        run_trial(rounds, stopped, NoReporter(), cache=ImageCache(cache))
    assert {path for path in stopped.path.rglob("*") if path.is_file()} == before


class TestIdentity:
    def test_a_missing_field_is_its_default(self, stopped: TrialFolder, rounds: TrialConfig) -> None:
        """As an older version wrote it, that did not know the field; the order of keys does not matter either."""
        lines = stopped.config_file.read_text().splitlines(keepends=True)
        shorter = [line for line in lines if "emd_reduction" not in line and "tau_1" not in line]
        stopped.config_file.write_text("# by hand\n" + "".join([*shorter[1:], shorter[0]]))
        before = stopped.config_file.read_text()
        assert stopped.config() == rounds
        stopped.create(rounds)
        assert stopped.config_file.read_text() == before and stopped.last_file.exists()

    @pytest.mark.parametrize(
        ("old", "new", "named"),
        [
            ("lr: 0.003", "lr: 0.004", r"optim\.lr: 0\.004 → 0\.003"),
            ("  epochs: 1\n  init", "  epochs: 2\n  init", r"self_training\.epochs: 2 → 1"),
            ("optim:\n", "optim:\n  from_the_future: 1\n", r"optim\.from_the_future: there is no such field"),
            ("lr: 0.003", "lr: fast", r"optim\.lr: should be a number"),
        ],
    )
    def test_another_recipe_is_refused_by_its_fields(
        self, stopped: TrialFolder, rounds: TrialConfig, cache: Path, old: str, new: str, named: str
    ) -> None:
        text = stopped.config_file.read_text()
        assert old in text
        stopped.config_file.write_text(text.replace(old, new))
        before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
        with pytest.raises(StudyError, match=rf"config\.yaml.*{named}"):
            run_trial(rounds, stopped, NoReporter(), cache=ImageCache(cache))
        assert {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()} == before


def test_a_failure_never_replaces_a_result(trials: Path, tmp_path: Path) -> None:
    folder = TrialFolder(shutil.copytree(trials / "whole", tmp_path / "trial"))
    before = folder.result_file.read_bytes()
    record_failure(folder, "why", 0, {})
    assert folder.result_file.read_bytes() == before
    folder.result_file.write_bytes(before[:-20])
    with pytest.raises(DamagedError):
        record_failure(folder, "why", 0, {})
    assert folder.result_file.read_bytes() == before[:-20]


def test_a_study_names_the_trials_that_begin_again(trials: Path, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    for number, name in enumerate(("whole", "stopped", "stopped")):
        shutil.copytree(trials / name, study.trial(number).path)
    study.trial(2).last_file.write_bytes(b"")
    (line,) = study.restart_damaged()
    assert line.startswith("trial 2: ") and "last.ckpt: is damaged: BadZipFile: File is not a zip file" in line
    assert study.trial(1).last_file.exists()
