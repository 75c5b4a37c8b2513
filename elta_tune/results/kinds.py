"""What a model can be exported as."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from elta_tune.errors import ConfigError, StudyError, did_you_mean

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
        StudyError: the file is there already, and is not to be replaced by force.
    """
    if kind not in DEFAULT_NAMES:
        known = ", ".join(DEFAULT_NAMES)
        raise ConfigError(f"--export {kind}: should be one of {known}{did_you_mean(kind, DEFAULT_NAMES)}")
    file = (output or Path(DEFAULT_NAMES[kind])).absolute()
    if file.exists() and not force:
        raise StudyError(f"{file}: is there already", "replace it with --force, or name another with --output")
    return file
