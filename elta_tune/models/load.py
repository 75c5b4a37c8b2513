"""Any file that holds a model."""

from __future__ import annotations

from pathlib import Path

from elta_tune.errors import ModelError
from elta_tune.models.checkpoint import Checkpoint, own_checkpoint
from elta_tune.models.formats.timm import LOAD_KEY, load_folder
from elta_tune.models.released import Head, released_checkpoint
from elta_tune.weights import read_weights


def load_model_file(path: Path, head: Head | None = None) -> Checkpoint:
    """An exported file or folder, or a checkpoint of ELTA's released code, and from that one `head`.

    Raises:
        ModelError: it is neither; no code in it was run.
    """
    if path.is_dir():
        return load_folder(path)
    content, metadata = read_weights(path)
    if LOAD_KEY in metadata:
        raise ModelError(
            f"{path}: a backbone alone, exported for timm", "evaluate and predict take ckpt, safetensors or hf"
        )
    return own_checkpoint(content, metadata, path) or released_checkpoint(content, path, head)
