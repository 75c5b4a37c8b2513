"""What a model can be exported as."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from elta_tune.errors import ConfigError
from elta_tune.models.outputs import refuse_existing
from elta_tune.suggestions import did_you_mean

Kind = Literal["ckpt", "safetensors", "onnx", "timm", "hf"]
DEFAULT_NAMES: dict[Kind, str] = {
    "ckpt": "best.ckpt",
    "safetensors": "best.safetensors",
    "onnx": "best.onnx",
    "timm": "best.timm.safetensors",
    "hf": "best.hf",
}
"""What an exported file, a folder for `hf`, is called."""


def exported_file(kind: str, output: Path | None, force: bool) -> Path:
    """Where an export goes, before anything is done for it.

    Raises:
        ConfigError: there is no such kind.
        StudyError: the file or its model card already exists, and `force` is not set.
    """
    if kind not in DEFAULT_NAMES:
        known = ", ".join(DEFAULT_NAMES)
        raise ConfigError(f"unknown export format {kind!r}{did_you_mean(kind, DEFAULT_NAMES)}; choose from {known}")
    file = (output or Path(DEFAULT_NAMES[kind])).absolute()
    for written in (file, card_file(file)) if kind == "safetensors" else (file,):
        what = "" if written == file else ", where the model card goes"
        refuse_existing(written, force, "output", what=what)
    return file


def card_file(file: Path) -> Path:
    """The model card next to an exported file."""
    return file.with_suffix(".md")
