"""Exported files stand by themselves, run no code when they are read, and others are refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from elta_tune.errors import ModelError
from elta_tune.records import StudyFolder
from elta_tune.results.checkpoint import load_checkpoint, save_checkpoint
from elta_tune.results.export import trial_checkpoint


def test_a_ckpt_loads_as_plain_weights_and_values(study: StudyFolder, result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(trial_checkpoint(study, result), path, "ckpt")
    assert zipfile.is_zipfile(path)
    content = torch.load(path, weights_only=True)
    assert {"state_dict", "config", "metrics", "epoch"} <= content.keys()
    assert content["metrics"]["srcc"] == result["metrics"]["srcc"]
    assert content["config"]["model"]["backbone"] == "test_efficientnet"
    assert content["epoch"] == result["best_epoch"]


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_file_predicts_without_anything_beside_it(
    study: StudyFolder, result: dict[str, Any], tmp_path: Path, kind: Literal["ckpt", "safetensors"]
) -> None:
    checkpoint = trial_checkpoint(study, result)
    save_checkpoint(checkpoint, tmp_path / "file", kind)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = (each.model()(images)[1] for each in (checkpoint, load_checkpoint(tmp_path / "file")))
    assert torch.equal(expected, found)
    assert expected.shape == (3, 5)


class Bomb:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def foreign_files(folder: Path) -> dict[str, Path]:
    paths = {
        name: folder / name for name in ("text", "empty", "pickle", "bomb", "weights", "dict", "zip", "safetensors")
    }
    paths["text"].write_text("no checkpoint")
    paths["empty"].write_bytes(b"")
    paths["pickle"].write_bytes(pickle.dumps({"state_dict": {}}))
    torch.save({"state_dict": {}, "config": Bomb(folder / "exploded")}, paths["bomb"])
    torch.save({"weight": torch.zeros(2)}, paths["weights"])
    torch.save([1, 2], paths["dict"])
    with zipfile.ZipFile(paths["zip"], "w") as archive:
        archive.writestr("readme.txt", "nothing")
    save_file({"weight": torch.zeros(2)}, paths["safetensors"])
    return paths


def test_foreign_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    for path in foreign_files(tmp_path).values():
        with pytest.raises(ModelError, match=rf"{path.name}: not a checkpoint of elta-tune"):
            load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ModelError, match="absent: not a checkpoint"):
        load_checkpoint(tmp_path / "absent")
