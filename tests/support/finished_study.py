"""A study with one real trial, to rank and export."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.records import StudyFolder, TrialFolder, TrialResult
from elta_tune.results import measure
from elta_tune.results.sources import load_model
from elta_tune.space.space import SearchSpace
from elta_tune.studies.plan import make_plan, record_plan
from elta_tune.trial import NoReporter, run_trial

__all__ = ["change_weights", "data", "diverged", "labelled", "measured_here", "result", "study", "trained", "trial"]
"""The fixtures, for the conftest.py of a folder that uses them."""

PARAMETERS = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}}


@pytest.fixture(scope="session")
def labelled(data_root: Path) -> TrialConfig:
    """A recipe that trains on labels alone, for one epoch."""
    return TrialConfig.model_validate(
        {
            "data": {"root": str(data_root), "resize": 36, "crop": 32},
            "model": {"backbone": "test_efficientnet", "pretrained": False},
            "optim": {"lr": 3e-3},
            "training": {"epochs": 1, "batch_size": 8},
        }
    )


@pytest.fixture(scope="session")
def trial(tmp_path_factory: pytest.TempPathFactory, labelled: TrialConfig, cache: Path) -> TrialFolder:
    """A finished trial, of two epochs. Tests only read it."""
    folder = TrialFolder(tmp_path_factory.mktemp("finished") / "trial")
    config = labelled.replace({"training.epochs": 2})
    assert run_trial(config, folder, NoReporter(), cache=ImageCache(cache)).state == "complete"
    return folder


@pytest.fixture
def diverged(trial: TrialFolder) -> Checkpoint:
    """That trial's model, with a head that gives no numbers."""
    checkpoint = load_model(str(trial.path), trial.path)
    bias = torch.full_like(checkpoint.state_dict["head.2.bias"], torch.nan)
    return replace(checkpoint, state_dict={**checkpoint.state_dict, "head.2.bias": bias})


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """A folder for `study`, trained once for all tests, and for its `data`."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(data_root, folder / "data")
    return folder


@pytest.fixture
def data(trained: Path) -> Iterator[Path]:
    """The data of the study, whose rating files a test may change."""
    before = {path: path.read_bytes() for path in (trained / "data").glob("*.csv")}
    yield trained / "data"
    for path, content in before.items():
        path.write_bytes(content)


@pytest.fixture
def study(recipe: TrialConfig, trained: Path, cache: Path, tmp_path: Path) -> StudyFolder:
    """A study of one trial, a copy that a test may damage."""
    original = StudyFolder(trained / "study")
    if not original.exists():
        recipe = recipe.replace({"data.root": str(trained / "data")})
        plan = make_plan(SearchSpace.model_validate({"parameters": PARAMETERS}), recipe)
        record_plan(original, plan, {})
        run_trial(
            plan.recipe, original.trial(0), NoReporter(), cache=ImageCache(cache), number=0, params={"optim.lr": 3e-3}
        )
    shutil.copytree(original.path, tmp_path / "study")
    return StudyFolder(tmp_path / "study")


@pytest.fixture
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures in this process: a new one takes seconds to import torch, and the command's own tests start it."""

    start_process = subprocess.run

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "elta_tune.results.measure" not in command:
            return start_process(command, **options)
        said = io.StringIO()
        with redirect_stderr(said):
            code = measure.main(command[command.index("elta_tune.results.measure") + 1 :])
        return subprocess.CompletedProcess(command, code, "", said.getvalue())

    monkeypatch.setattr("subprocess.run", run)


@pytest.fixture
def result(study: StudyFolder) -> TrialResult:
    """The result of that trial."""
    found = study.trial(0).result()
    assert found is not None
    return found


@pytest.fixture
def change_weights(study: StudyFolder) -> Callable[..., None]:
    """Adds a number to the first value of a tensor in a study's `best.safetensors`: `study`'s, or another's."""
    from safetensors.torch import load_file, save_file

    def change(name: str, amount: float, of: StudyFolder = study) -> None:
        weights = load_file(of.trial(0).best_file)
        weights[name].view(-1)[0] += amount
        save_file(weights, of.trial(0).best_file)

    return change
