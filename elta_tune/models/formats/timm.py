"""Files for timm: only the backbone, or a folder in Hugging Face's layout with the head next to it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from elta_tune.errors import ModelError, StudyError
from elta_tune.models.card import model_card
from elta_tune.models.checkpoint import Checkpoint, from_facts
from elta_tune.training.backbone import pretrained_config, timm_arguments, timm_name
from elta_tune.weights import METADATA_KEY, read_weights

HEAD_FILE = "head.safetensors"
LOAD_KEY = "load"
"""In the metadata of an exported backbone: the Python code that loads it."""


def write_timm(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the backbone's weights under timm's names; the metadata say how to load them."""
    backbone, _ = _parts(checkpoint)
    save_file(backbone, path, metadata={"format": "pt", LOAD_KEY: timm_command(checkpoint, path.name)})


def read_timm(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> Tensor:
    """Features (B, D) of uint8 images (B, S, S, 3), from what `timm.create_model` makes of the file."""
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / "backbone.safetensors"  # timm takes the format from the suffix
        named.symlink_to(path.absolute())
        options = {"checkpoint_path": str(named), **_arguments(checkpoint)}
        model = timm.create_model(timm_name(checkpoint.config.model.backbone), **options)
    return _features(checkpoint, model, images)


def timm_command(checkpoint: Checkpoint, file: str) -> str:
    """The Python that loads a backbone which was exported for timm."""
    arguments = "".join(f", {name}={value}" for name, value in _arguments(checkpoint).items())
    return f'timm.create_model("{timm_name(checkpoint.config.model.backbone)}", checkpoint_path="{file}"{arguments})'


def write_folder(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a folder that timm's `local-dir:` and `load_folder` read."""
    backbone, head = _parts(checkpoint)
    path.mkdir()
    save_file(backbone, path / "model.safetensors", metadata={"format": "pt"})
    save_file(head, path / HEAD_FILE, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(_folder_config(checkpoint), indent=2) + "\n", encoding="utf-8")
    use = 'timm.create_model("local-dir:FOLDER", pretrained=True)  # the backbone\nelta-tune predict FOLDER PHOTOS'
    (path / "README.md").write_text(model_card(checkpoint, use), encoding="utf-8")


def _folder_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What timm reads of a model, and under a key of its own what we do."""
    model = checkpoint.model()
    known: Any = model.backbone.pretrained_cfg
    size = checkpoint.config.data.crop
    arguments = {name: value for name, value in _arguments(checkpoint).items() if name != "num_classes"}
    return {
        "architecture": pretrained_config(checkpoint.config.model.backbone)["architecture"],
        "num_classes": 0,
        "num_features": model.backbone.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            **{name: known[name] for name in ("first_conv", "classifier")},
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": model.mean.tolist(),
            "std": model.std.tolist(),
        },
        METADATA_KEY: checkpoint.public_facts(),
    }


def read_folder(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> Tensor:
    """Features (B, D) of uint8 images (B, S, S, 3), from what timm's `local-dir:` makes of the folder.

    Raises:
        StudyError: the folder does not hold the checkpoint's weights.
    """
    check_weights(checkpoint, load_folder(path))
    return _features(checkpoint, timm.create_model(f"local-dir:{path}", pretrained=True), images)


def check_weights(checkpoint: Checkpoint, again: Checkpoint) -> None:
    """Refuses what was read back, if it holds other weights than what was written.

    Raises:
        StudyError: names the first that differs.
    """
    for name, value in checkpoint.state_dict.items():
        if not torch.equal(value, again.state_dict[name]):
            raise StudyError(f"what was written holds other weights than the model, the first {name}; it is not kept")


def load_folder(path: Path) -> Checkpoint:
    """Reads a folder that was exported as `hf`.

    Raises:
        ModelError: files are missing, or it is another tool's.
    """
    try:
        facts = json.loads((path / "config.json").read_text(encoding="utf-8"))[METADATA_KEY]
        files = {"backbone": path / "model.safetensors", "head": path / HEAD_FILE}
        parts = {part: read_weights(file)[0] for part, file in files.items()}
        state = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
        return replace(from_facts(state, facts, path / "config.json"), path=path)
    except (OSError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{path}: not a folder that elta-tune exported: {type(error).__name__}: {error}") from error


def _parts(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of backbone and head, each under its own names."""
    backbone, head = (
        {name.removeprefix(prefix): value for name, value in checkpoint.state_dict.items() if name.startswith(prefix)}
        for prefix in ("backbone.", "head.")
    )
    return backbone, head


def _arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `timm.create_model` needs in addition to the name."""
    return timm_arguments(checkpoint.config.model.backbone, checkpoint.config.data.crop)


@torch.inference_mode()
def _features(checkpoint: Checkpoint, backbone: Any, images: NDArray[np.uint8]) -> Tensor:
    features: Tensor = backbone.eval()(checkpoint.model().normalized(torch.from_numpy(images)))
    return features
