"""Exported checkpoints: weights, the configuration that trained them, and the metrics that chose them.

A file is self-contained: `load_checkpoint` needs nothing else to predict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.documents import Document, parse
from elta_tune.errors import ModelError
from elta_tune.training.model import AestheticModel, build_model
from elta_tune.weights import METADATA_KEY, read_weights

Format = Literal["ckpt", "safetensors"]


@dataclass(frozen=True)
class Checkpoint:
    """What an exported file holds.

    `bins` (K,) of an `emd` head are on the method's 1…10; `scale`, `threshold` and `tail_cuts` (of the training split,
    None where it is not known) are the data set's own. `path` is where it was read, for errors.
    """

    state_dict: dict[str, Tensor]
    config: TrialConfig
    metrics: dict[str, float | None]
    epoch: int | None
    bins: list[float] | None
    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float] | None
    source: dict[str, Any]
    path: Path | None = None

    @property
    def note(self) -> str | None:
        """What its user should know of it."""
        return self.source.get("note")

    @property
    def higher_is_better(self) -> bool:
        """Whether a high score is a good one."""
        return self.config.data.high_is_good

    def model(self) -> AestheticModel:
        """The model, on the CPU, ready to predict.

        Raises:
            ModelError: the weights are not this model's.
        """
        config = self.config.model.model_copy(update={"pretrained": False, "weights": None})
        bins = None if self.bins is None else torch.tensor(self.bins)
        model = build_model(config, bins=bins, size=self.config.data.crop, seed=0)
        try:
            model.load_state_dict(self.state_dict)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            file = "" if self.path is None else f"{self.path}: "
            raise ModelError(f"{file}the weights are not those of a {config.backbone} and its head: {first}") from error
        return model.eval()

    def facts(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {
            "config": self.config.model_dump(mode="json"),
            "metrics": self.metrics,
            "epoch": self.epoch,
            "bins": self.bins,
            "scale": list(self.scale),
            "threshold": self.threshold,
            "tail_cuts": self.tail_cuts and list(self.tail_cuts),
            "higher_is_better": self.higher_is_better,
            "source": self.source,
        }

    def public_facts(self) -> dict[str, Any]:
        """`facts` for what is passed on: in which folders data and weights lie, and on which host, is left out."""
        return replace(self, config=without_folders(self.config), source=_without_host(self.source)).facts()


def save_checkpoint(checkpoint: Checkpoint, path: Path, kind: Format) -> None:
    """Writes a checkpoint: `ckpt`, a torch file that loads with ``weights_only=True``, has all facts, `safetensors` the
    public ones.
    """
    if kind == "ckpt":
        torch.save({"state_dict": checkpoint.state_dict, **checkpoint.facts()}, path)
    else:
        save_file(checkpoint.state_dict, path, metadata={METADATA_KEY: json.dumps(checkpoint.public_facts())})


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads an exported file; no code in it is ever run.

    Raises:
        ModelError: elta-tune did not write it.
    """
    try:
        content, metadata = read_weights(path)
    except ModelError as error:
        reason = error.message.removeprefix(f"{path}: ")
        raise ModelError(f"{path}: not a checkpoint of elta-tune: {reason}", error.hint) from error
    checkpoint = own_checkpoint(content, metadata, path)
    if checkpoint is None:
        raise ModelError(f"{path}: not a checkpoint of elta-tune: the configuration that trained it is not in it")
    return checkpoint


def own_checkpoint(content: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> Checkpoint | None:
    """The checkpoint in the content of a file that `save_checkpoint` wrote, or None if another tool did.

    Raises:
        ModelError: parts of it are missing or wrong.
    """
    try:
        if METADATA_KEY in metadata:
            return from_facts(content, json.loads(metadata[METADATA_KEY]), path)
        if "config" not in content or "scale" not in content:
            return None
        return from_facts(content["state_dict"], content, path)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{path}: a damaged checkpoint of elta-tune: {type(error).__name__}: {error}") from error


def from_facts(state_dict: Mapping[str, Tensor], facts: Mapping[str, Any], path: Path) -> Checkpoint:
    """The way back of `Checkpoint.facts`; `path` is named in errors."""
    cuts = facts["tail_cuts"]
    config = parse(TrialConfig, Document(f"{path}: config", dict(facts["config"])))
    return Checkpoint(
        dict(state_dict),
        config,
        dict(facts["metrics"]),
        facts["epoch"],
        bins_of(config, facts),
        (float(facts["scale"][0]), float(facts["scale"][1])),
        float(facts["threshold"]),
        None if cuts is None else (float(cuts[0]), float(cuts[1])),
        dict(facts["source"]),
        path,
    )


def bins_of(config: TrialConfig, facts: Mapping[str, Any]) -> list[float] | None:
    """The ratings (K,) that a head predicts shares of. Older versions noted the data's for `mse`, too."""
    bins: list[float] | None = facts["bins"] if config.model.head == "emd" else None
    return bins


def without_folders(config: TrialConfig) -> TrialConfig:
    """The recipe without where its data lie; of a file of weights its name stays."""
    data = config.data.model_copy(update={name: None for name, value in config.data if isinstance(value, Path)})
    weights = config.model.weights and Path(config.model.weights.name)
    return config.model_copy(update={"data": data, "model": config.model.model_copy(update={"weights": weights})})


def _without_host(value: Any) -> Any:
    """Facts of a trial without host and process; of each file its name stays."""
    if isinstance(value, Mapping):
        return {name: _without_host(item) for name, item in value.items() if name not in ("host", "process")}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
