"""A checkpoint in other tools' formats, each read back and compared with the model before it is handed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.errors import StudyError
from elta_tune.files import atomic_path, disk_errors, write_atomic
from elta_tune.method.scores import to_method_scale
from elta_tune.models.card import model_card
from elta_tune.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from elta_tune.models.formats.kinds import Kind, card_file
from elta_tune.models.formats.onnx import run_onnx, write_onnx
from elta_tune.models.formats.timm import HEAD_FILE, check_weights, read_folder, read_timm, write_folder, write_timm
from elta_tune.models.outputs import naming_unwritable
from elta_tune.training.model import AestheticModel

TOLERANCE = 1e-4
"""Largest difference of what a written file and the model say."""
PROBES = 5


def write_model(checkpoint: Checkpoint, path: Path, kind: Kind) -> float:
    """Writes a checkpoint and reads it back.

    `ckpt` and `safetensors` are elta-tune's (the latter with a model card), `onnx` is the whole model with its
    normalisation, `timm` the backbone alone, `hf` a folder in Hugging Face's layout: the backbone for timm's
    `local-dir:`, the head in a file next to it.

    Returns:
        The largest difference of what the file and the model say of some random images: scores, or features where only
        the backbone is written.

    Raises:
        StudyError: the file can't be written, or says something else.
    """
    write, read_back = FORMATS[kind]
    if path.is_dir() and not (path / HEAD_FILE).is_file():
        raise StudyError(f"{path}: is a folder that was not exported here; it is left as it is")
    with naming_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as aside:
            with disk_errors(path):
                write(checkpoint, aside)
            difference = _largest_difference(checkpoint, lambda images: read_back(checkpoint, aside, images), kind)
            if not difference <= TOLERANCE:
                raise StudyError(
                    f"the {kind} file does not say what the model does: {difference:.3g} apart, more than "
                    f"{TOLERANCE:g}; nothing was written"
                )
        if kind == "safetensors":
            card = model_card(checkpoint, f"elta-tune predict {path.name} PHOTOS")
            write_atomic(card_file(path), lambda file: file.write_text(card, encoding="utf-8"))
    return difference


def _largest_difference(checkpoint: Checkpoint, said: Callable[[NDArray[np.uint8]], Tensor], kind: Kind) -> float:
    """Compares on random images, a single one and a batch."""
    model = checkpoint.model()
    size = checkpoint.config.data.crop
    images = np.random.default_rng(0).integers(0, 256, (PROBES, size, size, 3), dtype=np.uint8)
    differences = []
    for batch in (images[:1], images):
        features, scores = _says(model, batch)
        expected = features if kind in ("timm", "hf") else scores
        differences.append((said(batch) - expected).abs().max().item())
    return max(differences)


@torch.inference_mode()
def _says(model: AestheticModel, images: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Features (B, D), and the scores (B,) on 1…10."""
    features, logits = model(model.normalized(torch.from_numpy(images)))
    return features, model.head.scores(logits)


def _read_own(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> Tensor:
    again = load_checkpoint(path)
    check_weights(checkpoint, again)
    return _says(again.model(), images)[1]


def _read_onnx(checkpoint: Checkpoint, path: Path, images: NDArray[np.uint8]) -> Tensor:
    return to_method_scale(torch.from_numpy(run_onnx(path, images)["score"]), checkpoint.scale)


Write = Callable[[Checkpoint, Path], None]
ReadBack = Callable[[Checkpoint, Path, NDArray[np.uint8]], Tensor]
FORMATS: dict[Kind, tuple[Write, ReadBack]] = {
    "ckpt": (lambda checkpoint, path: save_checkpoint(checkpoint, path, "ckpt"), _read_own),
    "safetensors": (lambda checkpoint, path: save_checkpoint(checkpoint, path, "safetensors"), _read_own),
    "onnx": (write_onnx, _read_onnx),
    "timm": (write_timm, read_timm),
    "hf": (write_folder, read_folder),
}
