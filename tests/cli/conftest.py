"""A study that the command ran to its end, for the commands that read one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

COMMAND = str(Path(sys.executable).with_name("elta-tune"))
SPACE: dict[str, Any] = {
    "budget": {"trials": 4},
    "sampler": {"name": "random"},
    "pruner": {"name": "none"},
    "parameters": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "self_training.rounds": {"type": "int", "low": 0, "high": 1},
        "sharpening.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": "self_training.rounds > 0"},
    },
}
RUN = ("run", "--space", "space.yaml", "--recipe", "tiny.yaml", "--set", "training.epochs=5")
"""The command that starts the study, and resumes it."""


@pytest.fixture(scope="session", autouse=True)
def _typed_without_uv() -> Iterator[None]:
    """Commands that messages offer are those of an activated environment, wherever the tests were started from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UV", raising=False)
        yield


@pytest.fixture
def files(recipe_file: Path, tmp_path: Path) -> Path:
    """A folder with `tiny.yaml` and `space.yaml`."""
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE, sort_keys=False))
    return recipe_file.parent


@pytest.fixture(scope="session")
def _finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(files: Path, cache: Path, _finished_folder: Path, tmp_path: Path) -> Path:
    """`runs/space-tiny`, a finished study; a copy, in the folder in which `elta_tune` runs."""
    if not (_finished_folder / "runs").exists():
        shutil.copytree(files, _finished_folder, dirs_exist_ok=True)
        environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "COLUMNS": "80"}
        done = subprocess.run(
            [COMMAND, *RUN], cwd=_finished_folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (_finished_folder / "output.txt").write_text(done.stdout)
    shutil.copytree(_finished_folder / "runs", tmp_path / "runs")
    shutil.copy(_finished_folder / "output.txt", tmp_path)
    return tmp_path / "runs" / "space-tiny"
