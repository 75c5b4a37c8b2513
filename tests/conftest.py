"""What tests of all rooms share: a small data set on disk, a recipe that trains on it in a second, the command."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from elta_tune.cli import main
from elta_tune.config import TrialConfig

os.environ["OMP_NUM_THREADS"] = "1"
"""Tiny models gain nothing from more, and where cores are shared their threads wait for each other by spinning."""

os.environ.pop("FORCE_COLOR", None)
"""What commands print is compared as plain text."""

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
"""If it is set, each of the many processes that the tests start compiles torch again, which takes seconds."""

signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # of processes that it starts this is the default's again
"""Who runs the tests in the background, or under nohup, may have them ignore Ctrl-C and the terminal's end, and with
them all that they start."""

COMMAND = str(Path(sys.executable).with_name("elta-tune"))
"""The installed entry point."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the NNI back end, which live in folders of that name."""
    for item in items:
        if "nni" in item.path.parts:
            item.add_marker("nni")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file at a time, whose fixtures are then made once, in the order of collection: NNI's few long files first."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights next to a checkout; without it the test is skipped."""
    folder = Path(os.environ.get("ELTA_TUNE_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"real data is absent: {folder}")
    return folder


def write_data(
    root: Path, *, train: int = 32, val: int = 16, test: int = 16, pool: int = 16, size: int = 40, bins: int = 5
) -> Path:
    """Writes rating files of `count_1…count_K` and PNG images whose brightness follows their MOS."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, count in {"train": train, "val": val, "test": test, "pool": pool}.items():
        lines = ["image_id," + ",".join(f"count_{k}" for k in range(1, bins + 1))]
        for number in range(count):
            quality = random.uniform(0.15, 0.85)
            votes = random.multinomial(30, np.diff(np.linspace(0, 1, bins + 1) ** (quality / (1 - quality))))
            pixels = random.normal(255 * quality, 25, (size, size, 3)).clip(0, 255).astype(np.uint8)
            name = f"{split}_{number:03d}.png"
            Image.fromarray(pixels).save(root / "images" / name)
            lines.append(f"{name}," + ",".join(map(str, votes)))
        if split == "pool":
            lines = [line.partition(",")[0] for line in lines]
        if count:
            (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five bins with a pool. Tests only read it."""
    return write_data(tmp_path_factory.mktemp("data") / "root")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of decoded images for the whole run."""
    return tmp_path_factory.mktemp("cache")


def recipe_content(root: Path) -> dict[str, Any]:
    """A recipe that trains on `root` in about a second."""
    return {
        "data": {"root": str(root), "resize": 36, "crop": 32},
        "model": {"backbone": "test_efficientnet", "pretrained": False},
        "optim": {"lr": 3e-3},
        "simloss": {"weight": 1.0},
        "training": {"epochs": 2, "batch_size": 8},
        "self_training": {"epochs": 1},
        "sharpening": {"threshold": 0.2},
    }


@pytest.fixture
def recipe(data_root: Path) -> TrialConfig:
    """The recipe of `recipe_content`; vary it with `recipe.replace({"section.field": value})`."""
    return TrialConfig.model_validate(recipe_content(data_root))


@pytest.fixture
def recipe_file(data_root: Path, tmp_path: Path) -> Path:
    """The same recipe as a file, `tiny.yaml`."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(recipe_content(data_root), sort_keys=False))
    return file


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def elta_tune(tmp_path: Path, cache: Path) -> Run:
    """Runs the command in `tmp_path`, as a user would: `elta_tune("best", "--json").stdout`."""

    def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "COLUMNS": "80", **options.pop("env", {})}
        command = [COMMAND, *map(str, arguments)]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False, **options
        )

    return run


@pytest.fixture
def full_disk() -> Iterator[Callable[[], None]]:
    """Call it, and no file can grow beyond 16 KiB: the system itself refuses, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs the entry point in this process, in `tmp_path`: no new interpreter has to import torch."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("ELTA_TUNE_CACHE", str(cache))
        monkeypatch.setattr(sys, "argv", ["elta-tune", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0 if code is None else 1, *capfd.readouterr())

    return run
