"""What a model can be exported as."""

from __future__ import annotations

from typing import Literal

Kind = Literal["ckpt", "safetensors", "onnx", "timm", "hf"]
DEFAULT_NAMES: dict[Kind, str] = {
    "ckpt": "best.ckpt",
    "safetensors": "best.safetensors",
    "onnx": "best.onnx",
    "timm": "best.timm.safetensors",
    "hf": "best.hf",
}
"""What an exported file, a folder for `hf`, is called."""
