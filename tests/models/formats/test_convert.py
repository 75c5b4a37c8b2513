"""Exports: each format is read by its own tool and predicts what the model predicts."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import ConfigError, StudyError
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.models.formats.convert import write_model
from elta_tune.models.formats.kinds import DEFAULT_NAMES, Kind
from elta_tune.models.formats.onnx import run_onnx
from elta_tune.models.load import load_model_file
from elta_tune.records import StudyFolder, TrialResult
from elta_tune.results.export import export
from elta_tune.training.model import build_model


def new_checkpoint(backbone: str, size: int, head: str = "emd") -> Checkpoint:
    """An untrained model on ratings of 0…100."""
    config = TrialConfig.model_validate(
        {
            "data": {"resize": size, "crop": size, "root": "/somewhere/private"},
            "model": {"backbone": backbone, "head": head, "weights": "/somewhere/private/backbone.pth"},
        }
    )
    bins = [1.0, 4.0, 7.0, 10.0] if head == "emd" else None
    untrained = config.model.model_copy(update={"pretrained": False, "weights": None})
    model = build_model(untrained, bins=None if bins is None else torch.tensor(bins), size=size, seed=3)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    data = {"val": {"file": "/somewhere/private/val.csv", "rows": 7, "hash": "abc"}}
    metrics = {"srcc": 0.7123, "plcc": None, "n_low": 3}
    environment = {"device": "cpu", "host": "jane-s-laptop", "process": 47_110_815}
    source = {"trial": 1, "data": data, "environment": environment}
    return Checkpoint(state, config, metrics, 4, bins, (0.0, 100.0), 50.0, (20.0, 80.0), source)


@torch.inference_mode()
def said_by(checkpoint: Checkpoint, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, shares and scores on 0…100, written out."""
    model = checkpoint.model()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    features, logits = model((pixels - model.mean[:, None, None]) / model.std[:, None, None])
    if checkpoint.bins is None:
        return features.numpy(), logits.numpy(), (100 * (logits.sigmoid()[:, 0] * 10 - 1) / 9).numpy()
    shares = logits.softmax(dim=1).numpy()
    return features.numpy(), shares, shares @ np.array([0, 100 / 3, 200 / 3, 100])


def some_images(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("backbone", "size", "head"),
    [("test_resnet", 54, "emd"), ("test_resnet", 54, "mse"), ("swinv2_tiny_window8_256", 256, "emd")],
    ids=["demo", "demo, mse", "swinv2-tiny"],
)
def test_onnx_matches_torch_for_any_batch(
    backbone: str, size: int, head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    checkpoint = new_checkpoint(backbone, size, head)
    assert write_model(checkpoint, tmp_path / "best.onnx", "onnx") < 1e-4
    assert capfd.readouterr().err == ""  # onnxruntime would warn of each constant in SwinV2
    graph = onnx.load(tmp_path / "best.onnx")
    onnx.checker.check_model(graph)
    session = runtime.InferenceSession(tmp_path / "best.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 3):
        images = some_images(count, size)
        fed = {"image": images.transpose(0, 3, 1, 2).astype(np.float32) / 255}
        outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, fed), strict=True))
        _, shares, scores = said_by(checkpoint, images)
        np.testing.assert_allclose(outputs["score"], scores, atol=1e-3)  # of 100
        if head == "emd":
            np.testing.assert_allclose(outputs["distribution"], shares, atol=1e-4)
    assert [(one.domain, one.version) for one in graph.opset_import] == [("", 22)]
    facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert facts["preprocessing"]["resize"]["size"] == [size, size]
    assert facts["elta_tune"]["scale"] == [0, 100]


def test_backbone_that_torch_cannot_export_is_one_clear_error(tmp_path: Path, command: Callable[..., Any]) -> None:
    pytest.importorskip("onnxruntime")
    write_model(new_checkpoint("test_maxvit", 64), tmp_path / "first.ckpt", "ckpt")
    refused = command("export", "first.ckpt", "onnx")
    assert refused.returncode == 2
    assert re.match(r"elta-tune: torch can't export test_maxvit to ONNX: .+\n$", refused.stderr)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.ckpt"]


def test_file_that_onnxruntime_cannot_run_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "best.onnx").write_bytes(b"no model")
    with pytest.raises(StudyError, match=r"onnxruntime can't run the exported model: .+"):
        run_onnx(tmp_path / "best.onnx", some_images(1, 54))


def test_timm_takes_the_backbone_of_a_file(tmp_path: Path) -> None:
    checkpoint = new_checkpoint("test_vit", 160)
    write_model(checkpoint, tmp_path / "best.timm.safetensors", "timm")
    model = timm.create_model("test_vit", checkpoint_path=tmp_path / "best.timm.safetensors", num_classes=0).eval()
    assert_same_features(model, checkpoint, 160)


def test_timm_takes_the_backbone_of_a_folder_and_we_the_whole(tmp_path: Path) -> None:
    checkpoint = new_checkpoint("test_efficientnet", 64)
    folder = tmp_path / "best.hf"
    write_model(checkpoint, folder, "hf")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_same_features(model, checkpoint, 64)
    assert timm.data.resolve_model_data_config(model)["crop_mode"] == "squash"
    again = load_model_file(folder)
    assert again.public_facts() == checkpoint.public_facts()
    images = some_images(2, 64)
    np.testing.assert_array_equal(said_by(again, images)[2], said_by(checkpoint, images)[2])


@torch.inference_mode()
def assert_same_features(model: Any, checkpoint: Checkpoint, size: int) -> None:
    data = timm.data.resolve_model_data_config(model)
    images = some_images(2, size)
    pixels = (images.astype(np.float32) / 255 - data["mean"]) / np.array(data["std"], np.float32)
    features = model(torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features.numpy(), said_by(checkpoint, images)[0], atol=1e-5)


def test_model_card_has_metrics_split_and_config_but_no_paths(tmp_path: Path) -> None:
    write_model(new_checkpoint("test_resnet", 54), tmp_path / "best.safetensors", "safetensors")
    card = (tmp_path / "best.md").read_text()
    for fact in ("| srcc | 0.7123 |", "| n_low | 3 |", "val.csv, 7 images, hash abc", "backbone: test_resnet"):
        assert fact in card
    assert "to be filled in" in card
    assert "private" not in card


@pytest.mark.parametrize("kind", ["safetensors", "onnx", "timm", "hf"])
def test_exported_file_contains_no_folder_host_or_process(kind: Kind, tmp_path: Path) -> None:
    checkpoint = new_checkpoint("test_resnet", 54)
    file = tmp_path / DEFAULT_NAMES[kind]
    write_model(checkpoint, file, kind)
    for written in file.iterdir() if file.is_dir() else tmp_path.iterdir():
        content = written.read_bytes()
        for private in ("/somewhere", "jane", "47110815", "site-packages", str(Path(timm.__file__).parent)):
            assert private.encode() not in content
    if kind != "timm":
        again = checkpoint.public_facts()
        assert again["source"]["data"]["val"] == {"file": "val.csv", "rows": 7, "hash": "abc"}
        assert again["source"]["environment"] == {"device": "cpu"}
        assert again["config"]["model"]["weights"] == "backbone.pth"
    write_model(checkpoint, tmp_path / "own.ckpt", "ckpt")  # which one trains again from
    assert load_model_file(tmp_path / "own.ckpt").facts() == checkpoint.facts()


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    """safetensors writes files for their owner alone."""
    checkpoint = new_checkpoint("test_resnet", 54)
    for kind, file in (("safetensors", "best.safetensors"), ("hf", "best.hf/model.safetensors")):
        write_model(checkpoint, tmp_path / Path(file).parts[0], kind)  # type: ignore[arg-type]
        (tmp_path / "plain").touch()
        assert (tmp_path / file).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_own_folder_is_replaced_and_any_other_kept(tmp_path: Path) -> None:
    checkpoint = new_checkpoint("test_resnet", 54)
    folder = tmp_path / "best.hf"
    write_model(checkpoint, folder, "hf")
    write_model(checkpoint, folder, "hf")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(StudyError, match="left as it is"):
        write_model(checkpoint, mine, "hf")
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.hf", "mine"]


def test_the_command_exports_any_model(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_model(new_checkpoint("test_resnet", 54), tmp_path / "first.ckpt", "ckpt")
    assert command("export", "first.ckpt", "safetensors").returncode == 0
    first, again = (load_model_file(tmp_path / name) for name in ("first.ckpt", "best.safetensors"))
    assert again.public_facts() == first.public_facts()
    refused = command("export", "first.ckpt", "safetensors")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    assert command("export", "first.ckpt", "safetensors", "--force").returncode == 0
    unknown = command("export", "first.ckpt", "onx")
    assert unknown.returncode == 2
    assert "unknown export format 'onx'" in unknown.stderr
    assert "did you mean 'onnx'" in unknown.stderr
    assert "--export" not in unknown.stderr


def test_a_text_where_the_model_card_goes_is_not_replaced(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_model(new_checkpoint("test_resnet", 54), tmp_path / "first.ckpt", "ckpt")
    (tmp_path / "paper.md").write_text("years of work")
    refused = command("export", "first.ckpt", "safetensors", "--out", "paper.safetensors")
    assert refused.returncode == 2
    assert "paper.md: already exists, where the model card goes" in refused.stderr
    assert (tmp_path / "paper.md").read_text() == "years of work"
    assert not (tmp_path / "paper.safetensors").exists()
    assert command("export", "first.ckpt", "ckpt", "--out", "paper.ckpt").returncode == 0  # which writes no card
    assert command("export", "first.ckpt", "safetensors", "--out", "paper.safetensors", "--force").returncode == 0
    assert "test_resnet" in (tmp_path / "paper.md").read_text()


@pytest.mark.parametrize("kind", DEFAULT_NAMES)
def test_full_disk_is_one_clear_error_and_keeps_the_old_file(
    kind: str, tmp_path: Path, command: Callable[..., Any], full_disk: Callable[[], None]
) -> None:
    write_model(new_checkpoint("test_resnet", 54), tmp_path / "first.ckpt", "ckpt")
    file = tmp_path / DEFAULT_NAMES[kind]  # type: ignore[index]
    if kind != "hf":
        file.write_text("an earlier one")
    before = sorted(tmp_path.iterdir())
    full_disk()
    refused = command("export", "first.ckpt", kind, "--force")
    assert refused.returncode == 2, refused.stderr
    assert f"{file.name}: can't be written" in refused.stderr.replace("\n", "")
    assert sorted(tmp_path.iterdir()) == before
    assert kind == "hf" or file.read_text() == "an earlier one"


@pytest.mark.parametrize("kind", ["timm", "hf"])
def test_a_trial_is_measured_before_it_is_converted(
    kind: Kind,
    study: StudyFolder,
    result: TrialResult,
    cache: Path,
    tmp_path: Path,
    change_weights: Callable[[str, float], None],
    measured_here: None,
) -> None:
    path = tmp_path / "out" / DEFAULT_NAMES[kind]
    assert export(study, result, path, kind, cache=ImageCache(cache)) <= 1e-4
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    change_weights("head.0.weight", 1.0)
    with pytest.raises(StudyError, match="nothing was written"):
        export(study, result, path.with_name("again"), kind, cache=ImageCache(cache))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_without_onnx_the_message_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="onnxruntime") as refused:
        write_model(new_checkpoint("test_resnet", 54), tmp_path / "best.onnx", "onnx")
    assert "elta-tune[onnx]" in str(refused.value.hint)
    assert not list(tmp_path.iterdir())
