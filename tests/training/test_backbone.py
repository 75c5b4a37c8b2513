"""Backbones by all their names, with weights from any file; what does not fit is named and refused."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.utils import close_session
from safetensors.torch import save_file

from elta_tune.config import ModelConfig
from elta_tune.errors import ModelError
from elta_tune.training.backbone import check_backbone, check_images, timm_name
from elta_tune.training.model import AestheticModel, build_model


def config(backbone: str = "test_resnet", **values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, "pretrained": False, **values})


def build(backbone: str = "test_resnet", *, size: int = 32, **values: Any) -> AestheticModel:
    return build_model(config(backbone, **values), bins=torch.linspace(1, 10, 5), size=size, seed=0)


def write_safetensors(state: dict[str, torch.Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def write_pth(state: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def write_training_checkpoint(state: dict[str, torch.Tensor], folder: Path) -> Path:
    content = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}, "arch": "resnet"}
    torch.save(content, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar"


WRITERS = [write_safetensors, write_pth, write_training_checkpoint]


@pytest.mark.parametrize("write", WRITERS)
def test_weights_come_from_a_file(write: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_resnet", num_classes=1000)  # the file has a classifier left over
    model = build(weights=write(source.state_dict(), tmp_path), pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source.eval().forward_head(source.forward_features(images), pre_logits=True)
        assert torch.equal(model(images)[0], expected)


def test_weights_for_another_image_size_are_adapted(tmp_path: Path) -> None:
    source = timm.create_model("test_vit", img_size=64)
    model = build("test_vit", size=32, weights=write_pth({"model": source.state_dict()}, tmp_path))
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert model.backbone.pos_embed.shape[1] < source.pos_embed.shape[1]
    assert torch.equal(model.backbone.pos_embed[:, 0], source.pos_embed[:, 0])  # the class token has no place


def test_real_pretrained_weights_load(shared: Path) -> None:
    file = shared / "weights" / "tf_efficientnet_lite0.safetensors"
    model = build("tf_efficientnet_lite0", weights=file)
    assert model.mean.tolist() == model.std.tolist() == [0.5] * 3
    untrained = build("tf_efficientnet_lite0")
    assert not torch.equal(model.backbone.conv_stem.weight, untrained.backbone.conv_stem.weight)
    # Batch norm of a trained network has seen images; that of a new one is 0 and 1.
    assert model.backbone.bn1.running_mean.abs().max() > 0.1


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def page_of_an_error(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("write", [write_safetensors, write_pth])
@pytest.mark.parametrize("spoil", [truncated, page_of_an_error, empty])
def test_file_without_weights_is_refused(
    write: Callable[..., Path], spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    file = write(timm.create_model("test_resnet").state_dict(), tmp_path)
    spoil(file)
    with pytest.raises(ModelError, match=r"model\.weights: .*weights\.(safetensors|pth): (cut|a web|the file is)"):
        build(weights=file)


class Bomb:
    """Unpickling it would raise another error: it must not be run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the code in a file of weights was run')",)


def test_code_in_a_file_of_weights_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"model\.weights"):
        build(weights=tmp_path / "weights.pth")


def backbones_of(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What checkpoints of several tools hold, by what is odd in them."""
    head = {"head.0.weight": torch.ones(1)}
    return {
        "numbers": {"state_dict": state, "best": np.float64(0.5), "history": np.arange(3), "args": Namespace(lr=1)},
        "ours": {"state_dict": {**{f"backbone.{name}": value for name, value in state.items()}, **head}, "epoch": 1},
        "compiled": {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
        "detector": {"model": {f"module.backbone.body.{name}": value for name, value in state.items()}},
        "arrays": {"model": {name: value.numpy() for name, value in state.items()}},
        "average": {"state_dict": {name: value + 1 for name, value in state.items()}, "state_dict_ema": state},
        "two equal": {f"{part}.{name}": value for part in ("first", "second") for name, value in state.items()},
        "training": {"learner": {"weights": state}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    }


@pytest.mark.parametrize("kind", backbones_of({}))
def test_weights_are_found_in_any_checkpoint(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_resnet", num_classes=0).state_dict()
    model = build(weights=write_pth(backbones_of(source)[kind], tmp_path))
    assert all(torch.equal(value, source[name]) for name, value in model.backbone.state_dict().items())


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    both = {f"{part}.{name}": value + shift for part, shift in (("a", 0), ("b", 1)) for name, value in state.items()}
    with pytest.raises(ModelError, match=r"weights\.pth: holds 2 sets of weights of this backbone"):
        build(weights=write_pth(both, tmp_path))


def test_checkpoint_of_another_backbone_names_it(tmp_path: Path) -> None:
    state = {f"backbone.{name}": value for name, value in timm.create_model("test_vit").state_dict().items()}
    file = write_pth({"state_dict": state, "config": {"model": {"backbone": "test_vit"}}}, tmp_path)
    with pytest.raises(ModelError, match="not the weights of this backbone") as refused:
        build(weights=file)
    assert refused.value.hint == "they are of another: `model.backbone=test_vit`"


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("convnext_tiny_in22k", "convnext_tiny.fb_in22k"),
        ("hf_hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf-hub:timm/vit_tiny_patch16_224_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("hf_hub:someone/resnet18", "hf-hub:someone/resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k@main", "hf-hub:timm/resnet18.a1_in1k@main"),
        ("resnet18", "resnet18"),
    ],
)
def test_names_of_backbones_are_resolved(backbone: str, name: str) -> None:
    assert timm_name(backbone) == name


@pytest.mark.parametrize("backbone", ["someone/resnet18", "ftp:resnet18", "hf-hub:", "C:\\models\\resnet18"])
def test_unknown_backbone_is_refused_with_the_rule(backbone: str) -> None:
    with pytest.raises(ModelError, match=r"model\.backbone: .* is not a timm model") as refused:
        check_backbone(config(backbone))
    assert "hf-hub:OWNER/NAME" in str(refused.value.hint)


def test_renamed_backbone_takes_any_size() -> None:
    check_images(build("vit_tiny_patch16_224_in21k", size=64).backbone, config("vit_tiny_patch16_224_in21k"), 64)


def test_folder_of_a_backbone_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a trial runs in another working directory than the command
    assert config("local-dir:model").backbone == f"local-dir:{tmp_path}/model"


def test_backbone_in_a_folder_is_built_and_checked(tmp_path: Path) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_vit", num_classes=0, img_size=32)
    facts = {"architecture": "test_vit", "num_classes": 0, "model_args": {"img_size": 32}}
    cfg = {"input_size": [3, 32, 32], "fixed_input_size": True, "mean": [0.1] * 3, "std": [0.2] * 3, "num_classes": 0}
    (tmp_path / "config.json").write_text(json.dumps({**facts, "pretrained_cfg": cfg}))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = build(f"local-dir:{tmp_path}", pretrained=True, size=32)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.backbone.state_dict().items())
    assert model.mean.tolist() == pytest.approx([0.1] * 3)
    assert build("test_vit", weights=tmp_path).backbone.pos_embed.shape == source.pos_embed.shape
    with pytest.raises(ModelError, match=r"local-dir:.*absent: its configuration can't be read") as refused:
        check_backbone(config(f"local-dir:{tmp_path}/absent"))
    assert "config.json" in str(refused.value.hint)


def of_another_model(state: dict[str, Any]) -> dict[str, Any]:
    return timm.create_model("test_efficientnet").state_dict()


def without_a_layer(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith("layer4")}


def of_another_width(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "layer1.0.conv1.weight": torch.zeros(3, 3)}


def of_no_tensors(state: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(state, "text")


@pytest.mark.parametrize("wrong", [of_another_model, without_a_layer, of_another_width, of_no_tensors])
def test_weights_of_another_model_are_refused(wrong: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    file = write_pth(wrong(timm.create_model("test_resnet").state_dict()), tmp_path)
    with pytest.raises(ModelError, match=r"model\.weights: .*not the weights of this backbone: \d+ of its \d+ tensors"):
        build(weights=file)


def test_unknown_backbone_is_refused_before_it_is_built(tmp_path: Path) -> None:
    for values, message in (
        ({"backbone": "resnet181"}, r"model\.backbone: timm has no 'resnet181' — did you mean 'resnet1.*'"),
        (
            {"backbone": "resnet18.a1_in2k"},
            r"model\.backbone: timm has no weights 'a1_in2k' of resnet18 — did you mean 'a1_",
        ),
        ({"weights": tmp_path / "none.pth"}, r"model\.weights: .*none\.pth: no such file"),
    ):
        with pytest.raises(ModelError, match=message):
            check_backbone(config(**{"backbone": "test_resnet", **values}))


def test_missing_pretrained_weights_ask_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.pretrained: the weights of test_resnet are unavailable") as caught:
        build(pretrained=True)
    assert "model.weights=FILE" in str(caught.value.hint)


def test_unreachable_hub_is_reported_at_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    close_session()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits to try again"))
    try:
        with pytest.raises(ModelError, match=r"weights of test_resnet are unavailable: https://\S+ is unreachable"):
            build(pretrained=True)
    finally:
        close_session()
    assert capfd.readouterr() == ("", "")
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("efficientformer_l1", 64, r"model\.backbone: efficientformer_l1 can't take 64×64 images"),
        ("halonet_h1", 40, r"model\.backbone: halonet_h1 can't take 40×40 images: \w+"),
    ],
)
def test_backbone_that_cannot_take_the_images_is_refused(backbone: str, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message) as refused:
        check_images(build(backbone, size=size).backbone, config(backbone), size)
    assert "`data.crop=" in str(refused.value.hint)


def test_backbone_that_pools_nothing_is_refused() -> None:
    model = build()
    model.backbone.global_pool = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"test_resnet pools no features: .*\(1, 96, 1, 1\)"):
        check_images(model.backbone, config(), 32)
