"""Checkpoints of ELTA's released code (1.0 and 2.0), under today's names.

They hold `vit.*` (a SwinV2 as timm 0.6.12 named it), `linear_emd.*` and `linear_mse.*`: always both heads, whichever
was trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.errors import ModelError
from elta_tune.models.checkpoint import Checkpoint

WRAPPERS = ("state_dict", "model_state_dict", "model", "network")
"""Keys under which the weights may lie."""
BACKBONES = {
    (96, 6): "swinv2_tiny_window8_256",
    (96, 18): "swinv2_small_window8_256",
    (128, 18): "swinv2_base_window8_256",
}
"""By embedding width and blocks of the third stage; the published ones are the base."""
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask")
"""Buffers that follow from the window and are not stored any more."""
WINDOW = 8
Head = Literal["emd", "mse"]
HEADS: dict[Head, dict[str, str]] = {
    "emd": {"linear_emd.0": "head.0", "linear_emd.2": "head.2"},
    "mse": {"linear_mse.1": "head.1"},
}
"""Layers of the released heads, and their names here."""


def released_checkpoint(content: Mapping[str, Any], path: Path, head: Head | None = None) -> Checkpoint:
    """A released checkpoint as one of elta-tune's; evaluation is the released code's: 256×256, squashed, bilinear.

    Args:
        content: of the file, as `read_weights` gives it.
        path: named in errors.
        head: which head to take. Left out: the one that the optimizer in the file has trained, else `emd`, the
            released default, and `source["note"]` says so.

    Raises:
        ModelError: these are not the weights of such a model.
    """
    state = _weights(content, path)
    backbone = _backbone(state, path)
    head, note = _head(content, state, head)
    renamed = {f"backbone.{_today(name)}": value for name, value in _part(state, "vit.").items() if _is_kept(name)}
    for released, own in HEADS[head].items():
        for kind in ("weight", "bias"):
            if f"{released}.{kind}" not in state:
                raise ModelError(f"{path}: its {head} head has no {released}.{kind}")
            renamed[f"{own}.{kind}"] = state[f"{released}.{kind}"]
    bins = [float(k) for k in range(1, len(renamed["head.2.bias"]) + 1)] if head == "emd" else None
    if bins is not None and len(bins) != 10:
        raise ModelError(f"{path}: its emd head predicts {len(bins)} bins, not AVA's 10")
    epoch, best = content.get("epoch"), content.get("best_metric")
    model: dict[str, Any] = {"backbone": backbone, "head": head}
    if head == "emd":
        model["hidden_size"] = len(renamed["head.0.bias"])
    return Checkpoint(
        state_dict=renamed,
        config=TrialConfig.model_validate({"model": model}),
        metrics={},
        epoch=int(epoch) if isinstance(epoch, Integral) else None,
        bins=bins,
        scale=(1.0, 10.0),
        threshold=5.0,
        tail_cuts=None,
        source={"released": path.name, "best_metric": float(best) if isinstance(best, Real) else None, "note": note},
        path=path,
    )


def _weights(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by name, out of a wrapper and without what `DataParallel` puts before each name."""
    state: Any = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not any(name.startswith("vit.") for name in tensors):
        found = ", ".join(list(map(str, state))[:3]) or "nothing"
        raise ModelError(
            f"{path}: not a checkpoint of elta-tune, nor of ELTA's released code (vit.*, linear_emd.*): holds {found}",
            "weights of a backbone alone are for training: `model.weights=FILE`",
        )
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _backbone(state: Mapping[str, Tensor], path: Path) -> str:
    """Which SwinV2 it is.

    Raises:
        ModelError: none that the released code trains.
    """
    patches = state.get("vit.patch_embed.proj.weight")
    blocks = {name.split(".")[4] for name in state if name.startswith("vit.layers.2.blocks.")}
    shape = (0 if patches is None else len(patches), len(blocks))
    masks = {value.shape[-1] for name, value in state.items() if name.endswith("attn_mask")}
    if shape not in BACKBONES or not masks <= {WINDOW**2}:
        raise ModelError(
            f"{path}: its backbone is none of {', '.join(BACKBONES.values())}: width {shape[0]}, "
            f"{shape[1]} blocks in the third stage"
        )
    return BACKBONES[shape]


def _head(content: Mapping[str, Any], state: Mapping[str, Tensor], asked: Head | None) -> tuple[Head, str | None]:
    """Which head to take, and what the user should know of the choice."""
    if (head := asked or _trained_head(content, state)) is not None:
        return head, None
    there: list[Head] = [head for head, layers in HEADS.items() if all(f"{layer}.weight" in state for layer in layers)]
    if len(there) < 2:
        return (there or ["emd"])[0], None
    return "emd", "holds an emd and an mse head, and does not say which was trained: the emd head is used"


def _trained_head(content: Mapping[str, Any], state: Mapping[str, Tensor]) -> Head | None:
    """The head that the saved optimizer holds moments of; a head without a gradient has none."""
    optimizer = content.get("optimizer")
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("state"), Mapping):
        return None
    names = [name for name in state if not any(part in name for part in DERIVED)]
    trained = {names[index] for index in optimizer["state"] if isinstance(index, int) and index < len(names)}
    heads: list[Head] = [head for head in ("emd", "mse") if any(name.startswith(f"linear_{head}.") for name in trained)]
    return heads[0] if len(heads) == 1 else None


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _is_kept(name: str) -> bool:
    return not name.startswith("head.") and not any(part in name for part in DERIVED)


def _today(name: str) -> str:
    """timm 0.6 halved the resolution at the end of a stage, today's at the start of the next."""
    return re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
