"""Exported checkpoints: weights, the configuration that trained them, and the metrics that chose them.

A file stands by itself: `load_checkpoint` needs nothing else to predict.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.documents import Document, parse
from elta_tune.errors import ModelError
from elta_tune.training.model import AestheticModel, build_model

Format = Literal["ckpt", "safetensors"]
FORMATS: tuple[Format, ...] = ("ckpt", "safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """What an exported file holds.

    `bins` (K,) are on the method's 1…10; `scale` is the data set's own.
    """

    state_dict: dict[str, Tensor]
    config: TrialConfig
    metrics: dict[str, float | None]
    epoch: int
    bins: list[float] | None
    scale: tuple[float, float]
    source: dict[str, Any]

    def model(self) -> AestheticModel:
        """The model, on the CPU, ready to predict."""
        config = self.config.model.model_copy(update={"pretrained": False, "weights": None})
        bins = None if self.bins is None else torch.tensor(self.bins)
        model = build_model(config, bins=bins, size=self.config.data.crop, seed=0)
        model.load_state_dict(self.state_dict)
        return model.eval()

    def facts(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "metrics": self.metrics,
            "epoch": self.epoch,
            "bins": self.bins,
            "scale": list(self.scale),
            "source": self.source,
        }


def save_checkpoint(checkpoint: Checkpoint, path: Path, kind: Format) -> None:
    """Writes a checkpoint: `ckpt` is a torch file that loads with ``weights_only=True``."""
    if kind == "ckpt":
        torch.save({"state_dict": checkpoint.state_dict, **checkpoint.facts()}, path)
    else:
        save_file(checkpoint.state_dict, path, metadata={"elta_tune": json.dumps(checkpoint.facts())})


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads an exported file; no code in it is ever run.

    Raises:
        ModelError: it is not one of ours.
    """
    try:
        content = _read(path)
        facts: Mapping[str, Any] = content["facts"]
        config = parse(TrialConfig, Document(f"{path}: config", dict(facts["config"])))
        return Checkpoint(
            content["state_dict"],
            config,
            dict(facts["metrics"]),
            int(facts["epoch"]),
            facts["bins"],
            (float(facts["scale"][0]), float(facts["scale"][1])),
            dict(facts["source"]),
        )
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: not a checkpoint of elta-tune: it holds more than weights and plain values"
        ) from error
    except (KeyError, TypeError, IndexError, OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ModelError(f"{path}: not a checkpoint of elta-tune: {reason}") from error


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        is_torch = file.read(4) == b"PK\x03\x04"  # torch files are zip archives
    if is_torch:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {"state_dict": content.pop("state_dict"), "facts": content}
    with safe_open(path, framework="pt") as opened:
        facts = json.loads((opened.metadata() or {})["elta_tune"])
    return {"state_dict": load_file(path), "facts": facts}
