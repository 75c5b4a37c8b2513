"""Checkpoints of ELTA's released code, and files that only look like one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elta_tune.config import TrialConfig
from elta_tune.errors import ModelError
from elta_tune.models.checkpoint import Checkpoint, save_checkpoint
from elta_tune.models.load import load_model_file
from elta_tune.models.released import released_checkpoint
from elta_tune.training.model import build_model

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "released_swin.json").read_text())
"""The released module's keys and shapes, and what it says of one image, computed with timm 0.6.13."""


def filled(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """The tensors of the reference: its generator and its scales, in the order of the keys."""
    random = np.random.default_rng(613)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("attn_mask"):
            state[name] = torch.zeros(shape)
            continue
        values = random.standard_normal(shape, dtype=np.float32)
        scale, base = 0.02, 0.0
        if name.endswith("logit_scale"):
            scale, base = 0.1, 2.3
        elif "norm" in name and name.endswith("weight"):
            scale, base = 0.1, 1.0
        state[name] = torch.from_numpy(base + scale * values)
    return state


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights in SwinV2-Base's real layout."""
    return filled(REFERENCE["shapes"])


def moments(state: dict[str, torch.Tensor], head: str) -> dict[str, Any]:
    """What Adam saved, had it trained the backbone and one head."""
    parameters = [name for name in state if not name.endswith("attn_mask")]
    trained = [n for n, name in enumerate(parameters) if name.startswith((f"linear_{head}", "vit.layers"))]
    return {"state": {n: {"step": torch.tensor(1.0)} for n in trained}, "param_groups": [{"lr": 1e-5}]}


def test_released_file_gives_the_original_features_and_scores(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "epoch9_srcc_0.76.ckpt.pth"
    saved = {"epoch": 10, "state_dict": state, "best_metric": np.float64(0.764), "optimizer": moments(state, "emd")}
    torch.save(saved, file)
    checkpoint = load_model_file(file)
    assert checkpoint.config.model.backbone == "swinv2_base_window8_256"
    assert (checkpoint.epoch, checkpoint.source["best_metric"]) == (10, 0.764)
    model = checkpoint.model()
    image = np.random.default_rng(256).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    with torch.inference_mode():
        features, logits = model(model.normalized(torch.from_numpy(image)))
    np.testing.assert_allclose(features[0].numpy(), REFERENCE["features"], atol=1e-4)
    np.testing.assert_allclose(logits[0].numpy(), REFERENCE["logits"], atol=1e-4)
    shares = np.exp(REFERENCE["logits"]) / np.exp(REFERENCE["logits"]).sum()
    assert model.head.scores(logits).item() == pytest.approx(shares @ np.arange(1, 11), abs=1e-4)


def test_the_head_that_the_optimizer_trained_is_taken(state: dict[str, torch.Tensor]) -> None:
    content = {"state_dict": state, "optimizer": moments(state, "mse")}
    checkpoint = released_checkpoint(content, Path("mse.pth"))
    assert checkpoint.config.model.head == "mse"
    features = torch.tensor([REFERENCE["features"]])
    weight, bias = checkpoint.state_dict["head.1.weight"], checkpoint.state_dict["head.1.bias"]
    assert torch.sigmoid(features @ weight.T + bias).item() == pytest.approx(REFERENCE["mse"], abs=1e-4)
    assert released_checkpoint(state, Path("bare.pth")).config.model.head == "emd"
    assert released_checkpoint(content, Path("mse.pth"), head="emd").config.model.head == "emd"


def test_chosen_head_is_reported_unless_the_file_decides(
    state: dict[str, torch.Tensor], tmp_path: Path, command: Callable[..., Any]
) -> None:
    """Both heads of one file without an optimizer score the reference's image as the original does."""
    torch.save(state, tmp_path / "bare.pth")
    pixels = np.random.default_rng(256).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    shares = np.exp(REFERENCE["logits"]) / np.exp(REFERENCE["logits"]).sum()
    scores = {"emd": shares @ np.arange(1, 11), "mse": 10 * REFERENCE["mse"]}
    for asked, head in (((), "emd"), (("--head", "emd"), "emd"), (("--head", "mse"), "mse")):
        done = command("predict", "bare.pth", "image.png", "--json", *asked)
        assert json.loads(done.stdout)["score"] == pytest.approx(scores[head], abs=1e-3)
        assert ("does not say which was trained: the emd head is used" in done.stderr) == (not asked)
    (tmp_path / "one.csv").write_text("image_id,score\nimage.png,5\n")
    scale = ("--set", "data.scale=[1,10]")
    done = command("evaluate", "bare.pth", "--csv", "one.csv", "--images", ".", "--json", *scale)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["mae"] == pytest.approx(abs(scores["emd"] - 5), abs=1e-3)
    assert "note: bare.pth: holds an emd and an mse head" in done.stderr
    refused = command("predict", "bare.pth", "image.png", "--head", "mes")
    assert (refused.returncode, "--head mes: should be emd or mse" in refused.stderr) == (2, True)
    trained = released_checkpoint({"state_dict": state, "optimizer": moments(state, "emd")}, Path("emd.pth"))
    assert trained.source["note"] is None


def test_a_model_with_one_head_has_no_other(tmp_path: Path, command: Callable[..., Any]) -> None:
    config = TrialConfig().replace({"model.backbone": "test_resnet", "model.pretrained": False, "data.crop": 54})
    model = build_model(config.model, bins=torch.arange(1.0, 11.0), size=54, seed=0)
    own = Checkpoint(model.state_dict(), config, {}, 1, [*map(float, range(1, 11))], (1, 10), 5, None, {})
    save_checkpoint(own, tmp_path / "own.ckpt", "ckpt")
    assert command("export", "own.ckpt", "timm", "--head", "emd").returncode == 0
    for arguments in (("export", "own.ckpt", "hf"), ("evaluate", "own.ckpt"), ("predict", "own.ckpt", tmp_path)):
        refused = command(*arguments, "--head", "mse")
        assert refused.returncode == 2
        assert "own.ckpt: has an emd head, and no other" in refused.stderr
    refused = command("evaluate", "--from-predictions", "own.csv", "--head", "mse")
    assert (refused.returncode, "--head are for a model" in refused.stderr) == (2, True)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "network", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_each_way_of_wrapping_the_weights_is_seen_through(
    key: str | None, prefix: str, state: dict[str, torch.Tensor]
) -> None:
    wrapped = {prefix + name: value for name, value in state.items()}
    checkpoint = released_checkpoint({key: wrapped} if key else wrapped, Path("any.pth"))
    expected = released_checkpoint(state, Path("bare.pth"))
    assert checkpoint.state_dict.keys() == expected.state_dict.keys()
    name = "backbone.layers.1.downsample.reduction.weight"
    assert torch.equal(checkpoint.state_dict[name], state["vit.layers.0.downsample.reduction.weight"])


def test_another_backbone_or_a_missing_head_is_refused(state: dict[str, torch.Tensor]) -> None:
    wider = {**state, "vit.patch_embed.proj.weight": torch.zeros(192, 3, 4, 4)}
    with pytest.raises(ModelError, match="its backbone is none of"):
        released_checkpoint(wider, Path("large.pth"))
    windowed = {**state, "vit.layers.0.blocks.1.attn_mask": torch.zeros(16, 256, 256)}
    with pytest.raises(ModelError, match="its backbone is none of"):
        released_checkpoint(windowed, Path("window16.pth"))
    headless = {name: value for name, value in state.items() if name != "linear_emd.2.bias"}
    with pytest.raises(ModelError, match=r"no linear_emd\.2\.bias"):
        released_checkpoint(headless, Path("headless.pth"))


def test_foreign_weights_are_refused_with_their_content(tmp_path: Path) -> None:
    torch.save({"conv_stem.weight": torch.ones(2)}, tmp_path / "backbone.pth")
    with pytest.raises(ModelError, match=r"holds conv_stem\.weight") as refused:
        load_model_file(tmp_path / "backbone.pth")
    assert "model.weights" in str(refused.value.hint)
