"""Any timm backbone with either head; weights from files; what does not fit is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from elta_tune.config import ModelConfig
from elta_tune.errors import ModelError
from elta_tune.training.model import AestheticModel, build_model, check_backbone, check_images, trained_state

BINS = torch.linspace(1, 10, 5)


def config(backbone: str = "test_resnet", **values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, "pretrained": False, **values})


def build(backbone: str = "test_resnet", *, size: int = 32, seed: int = 0, **values: Any) -> AestheticModel:
    return build_model(config(backbone, **values), bins=BINS, size=size, seed=seed)


@pytest.mark.parametrize(
    ("backbone", "width", "size"),
    [
        ("test_resnet", 96, 24),
        ("mobilenetv3_small_050", 1024, 32),  # num_features is 288 there
        ("test_vit", 64, 48),  # built for 160 px
        ("test_maxvit", 128, 64),  # windows that must divide the image
        ("swin_tiny_patch4_window7_224", 768, 32),
        ("test_efficientnet.r160_in1k", 256, 32),
    ],
)
def test_every_kind_of_backbone_gives_pooled_features_and_logits(backbone: str, width: int, size: int) -> None:
    model = build(backbone, size=size, hidden_size=7).eval()
    check_images(model, config(backbone), size)
    with torch.no_grad():
        features, logits = model(torch.randn(2, 3, size, size))
    assert features.shape == (2, width)
    assert logits.shape == (2, 5)
    assert [tuple(parameter.shape) for parameter in model.head.parameters()] == [(7, width), (7,), (5, 7), (5,)]


def test_distribution_head_scores_by_the_bins_on_the_method_s_scale() -> None:
    model = build()
    logits = torch.randn(3, 5, dtype=torch.float64)
    probabilities = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.head.scores(logits), probabilities @ [1, 3.25, 5.5, 7.75, 10], rtol=1e-12)


def test_score_head_is_dropout_and_a_sigmoid_times_ten() -> None:
    model = build(head="mse", dropout=0.5)
    logits = torch.tensor([[-1.0], [0.0], [2.0]])
    np.testing.assert_allclose(model.head.scores(logits), 10 / (1 + np.exp([1.0, 0.0, -2.0])), rtol=1e-6)
    features = torch.ones(400, 96)
    with torch.no_grad():
        model.head[1].weight.fill_(1.0)
        dropped = (model.train().head[0](features) == 0).float().mean()
    assert 0.4 < dropped < 0.6
    assert model.head.loss(logits, torch.tensor([[0.1], [0.5], [0.9]]), "batch").item() == pytest.approx(
        np.mean([(1 / (1 + np.e) - 0.1) ** 2, 0, (1 / (1 + np.exp(-2)) - 0.9) ** 2])
    )


def test_a_seed_makes_the_weights_and_the_head_does_not_hang_on_the_backbone() -> None:
    one, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert all(torch.equal(left, right) for left, right in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.head[0].weight, other.head[0].weight)
    assert not torch.equal(one.backbone.conv1[0].weight, other.backbone.conv1[0].weight)


def test_mean_and_std_are_the_backbone_s_own() -> None:
    assert build("resnet10t").mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert build("test_vit").std.tolist() == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("head", ["emd", "mse"])
def test_a_state_dict_holds_all_that_is_trained_and_nothing_else(head: str) -> None:
    model = build(head=head)
    state = trained_state(model)
    assert set(state) == {f"backbone.{name}" for name in model.backbone.state_dict()} | {
        f"head.{name}" for name, _ in model.head.named_parameters()
    }
    with torch.no_grad():
        model.head[-1].weight.add_(1.0)
    assert not torch.equal(state[f"head.{len(model.head) - 1}.weight"], model.head[-1].weight)


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
def test_a_file_that_is_no_weights_is_refused(
    write: Callable[..., Path], spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    file = write(timm.create_model("test_resnet").state_dict(), tmp_path)
    spoil(file)
    kinds = "can't be read as safetensors or pth"
    with pytest.raises(ModelError, match=rf"model\.weights: .*weights\.(safetensors|pth): {kinds}: .+"):
        build(weights=file)


class Bomb:
    """Unpickling it would raise another error: it must not be run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the code in a file of weights was run')",)


@pytest.mark.parametrize("by_default", [True, False], ids=["today's timm", "timm 1.0.20"])
def test_code_in_a_file_of_weights_is_never_run(
    by_default: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever timm's own default is: in the oldest that is allowed, `weights_only` is off."""
    monkeypatch.setattr(timm.models.load_state_dict, "__defaults__", (True, "cpu", by_default))
    torch.save({"state_dict": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"model\.weights"):
        build(weights=tmp_path / "weights.pth")


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


def test_what_can_t_be_built_is_refused_before_it_is(tmp_path: Path) -> None:
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


def test_pretrained_weights_that_can_t_be_had_are_a_hint_to_name_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.pretrained: the weights of test_resnet can't be had") as caught:
        build(pretrained=True)
    assert "model.weights=FILE" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("backbone", "size", "message"),
    [
        ("efficientformer_l1", 64, r"model\.backbone: efficientformer_l1 can't take 64×64 images"),
        ("halonet_h1", 40, r"model\.backbone: halonet_h1 can't take 40×40 images: \w+"),
    ],
)
def test_a_backbone_that_can_t_take_the_images_is_refused(backbone: str, size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_images(build(backbone, size=size), config(backbone), size)


def test_a_backbone_that_pools_nothing_is_refused() -> None:
    model = build()
    model.backbone.global_pool = torch.nn.Identity()
    with pytest.raises(ModelError, match=r"test_resnet pools no features: .*\(1, 96, 1, 1\)"):
        check_images(model, config(), 32)


def test_a_distribution_head_needs_distributions() -> None:
    with pytest.raises(ModelError, match=r"model\.head: emd needs ratings with a distribution"):
        build_model(config(), bins=None, size=32, seed=0)
    build_model(config(head="mse"), bins=None, size=32, seed=0)
