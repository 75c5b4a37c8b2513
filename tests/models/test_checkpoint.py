"""Exported files are self-contained and run no code when read; other files are refused."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import ModelError
from elta_tune.files import write_json
from elta_tune.models.checkpoint import load_checkpoint, save_checkpoint
from elta_tune.models.formats.convert import write_model
from elta_tune.models.formats.kinds import DEFAULT_NAMES, Kind
from elta_tune.models.load import load_model_file
from elta_tune.records import StudyFolder, TrialFolder, TrialResult
from elta_tune.results.export import trial_checkpoint
from elta_tune.results.sources import load_model
from elta_tune.trial import NoReporter, run_trial


def test_a_ckpt_loads_as_plain_weights_and_values(study: StudyFolder, result: TrialResult, tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    save_checkpoint(trial_checkpoint(study, result), path, "ckpt")
    assert zipfile.is_zipfile(path)
    content = torch.load(path, weights_only=True)
    assert {"state_dict", "config", "metrics", "epoch"} <= content.keys()
    assert content["metrics"]["srcc"] == result.metrics["srcc"]
    assert content["config"]["model"]["backbone"] == "test_efficientnet"
    assert content["epoch"] == result.best_epoch


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_checkpoint_predicts_without_other_files(
    study: StudyFolder, result: TrialResult, tmp_path: Path, kind: Literal["ckpt", "safetensors"]
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


def test_a_file_with_other_bytes_than_were_written_is_refused(
    study: StudyFolder, result: TrialResult, tmp_path: Path
) -> None:
    checkpoint, path = trial_checkpoint(study, result), tmp_path / "flipped.ckpt"
    save_checkpoint(checkpoint, path, "ckpt")
    content = path.read_bytes()
    weights = checkpoint.state_dict["head.0.weight"].numpy().tobytes()
    path.write_bytes(content.replace(weights[:64], bytes(64)))
    with pytest.raises(ModelError, match=r"flipped\.ckpt: cut short, damaged, or no checkpoint: .*/data/\d+ has not"):
        load_model_file(path)


def test_a_file_that_torch_wrote_without_checksums_is_read(
    study: StudyFolder, result: TrialResult, tmp_path: Path
) -> None:
    checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(trial_checkpoint(study, result), tmp_path / "best.ckpt", "ckpt")
    finally:
        torch.serialization.set_crc32_options(checksums)
    with zipfile.ZipFile(tmp_path / "best.ckpt") as archive:
        assert archive.testzip() is not None
    assert load_model_file(tmp_path / "best.ckpt").epoch == result.best_epoch


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "hf"])
def test_weights_of_another_model_are_refused_by_their_file(
    kind: Kind, study: StudyFolder, result: TrialResult, tmp_path: Path
) -> None:
    path = tmp_path / f"best.{kind}"
    write_model(trial_checkpoint(study, result), path, kind)
    checkpoint = load_model_file(path)
    del checkpoint.state_dict["head.2.weight"]
    with pytest.raises(ModelError, match=rf"^{path}: the weights are not those of .*head\.2\.weight"):
        checkpoint.model()


@pytest.mark.parametrize(("kind", "reason"), [("onnx", "ONNX is not read"), ("timm", "a backbone alone")])
def test_export_for_other_programs_is_refused_by_kind(
    kind: Kind, reason: str, study: StudyFolder, result: TrialResult, tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
    path = tmp_path / DEFAULT_NAMES[kind]
    write_model(trial_checkpoint(study, result), path, kind)
    with pytest.raises(ModelError, match=rf"^{path}: .*{reason}") as refused:
        load_model_file(path)
    assert ("ckpt, safetensors" if kind == "timm" else "torch.save") in str(refused.value.hint)


def test_foreign_files_are_refused_and_run_nothing(tmp_path: Path) -> None:
    for path in foreign_files(tmp_path).values():
        with pytest.raises(ModelError, match=rf"{path.name}: not a checkpoint of elta-tune"):
            load_checkpoint(path)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(ModelError, match="absent: not a checkpoint"):
        load_checkpoint(tmp_path / "absent")


def test_score_head_has_no_bins_even_on_data_with_votes(
    recipe: TrialConfig, cache: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Nor have they in what older versions wrote, which noted those of the data."""
    trial = TrialFolder(tmp_path / "trial")
    result = run_trial(
        recipe.replace({"model.head": "mse", "training.epochs": 1}),
        trial,
        NoReporter(),
        cache=ImageCache(cache),
        number=0,
    )
    assert result.model is not None and result.model.bins is None
    with_bins = replace(result, model=replace(result.model, bins=(1, 3.25, 5.5, 7.75, 10)))
    write_json(trial.result_file, with_bins.to_dict())
    checkpoint = load_model(str(trial.path), tmp_path)
    assert checkpoint.bins is None
    for name, kind in (("old.ckpt", "ckpt"), ("old.safetensors", "safetensors")):
        save_checkpoint(replace(checkpoint, bins=[1, 3.25, 5.5, 7.75, 10]), tmp_path / name, kind)  # type: ignore[arg-type]
        assert load_model_file(tmp_path / name).bins is None
    assert command("predict", "old.ckpt", recipe.data.root / "images" / "val_000.png", "--out", "m.csv").returncode == 0  # type: ignore[operator]
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "image_id,score,reason"
    onnx = pytest.importorskip("onnx")
    assert command("export", trial.path, "onnx").returncode == 0
    graph = onnx.load(tmp_path / "best.onnx")
    outputs = {entry.key: entry.value for entry in graph.metadata_props}["outputs"]
    assert json.loads(outputs).keys() == {output.name for output in graph.graph.output} == {"score"}


def test_a_folder_whose_weights_are_cut_short_is_refused(
    study: StudyFolder, result: TrialResult, tmp_path: Path
) -> None:
    write_model(trial_checkpoint(study, result), tmp_path / "best.hf", "hf")
    for name in ("head.safetensors", "model.safetensors"):
        file = tmp_path / "best.hf" / name
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(ModelError, match=rf"{name}: cut short"):
            load_model_file(tmp_path / "best.hf")
