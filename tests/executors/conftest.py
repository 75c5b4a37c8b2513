"""Trials for executors to run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elta_tune.config import TrialConfig
from elta_tune.executors import Job
from elta_tune.executors.local import LocalExecutor


@pytest.fixture(scope="session", autouse=True)
def _forkserver() -> None:
    """Its imports run while the first tests do something else."""
    LocalExecutor.prepare()


@pytest.fixture
def make_job(recipe: TrialConfig, cache: Path, tmp_path: Path) -> Callable[..., Job]:
    """`make_job(3, {"training.epochs": 5})`: trial 3, with that change."""

    def make(number: int = 0, changes: dict[str, Any] | None = None, folder: Path | None = None) -> Job:
        params = dict(changes or {})
        return Job(number, recipe.replace(params), params, folder or tmp_path / f"{number:04d}", cache)

    return make


@pytest.fixture
def process_of() -> Callable[[Job], int]:
    """The process that a trial's log names last."""

    def find(job: Job) -> int:
        return int(re.findall(r"process (\d+) on", (job.folder / "log.txt").read_text())[-1])

    return find
