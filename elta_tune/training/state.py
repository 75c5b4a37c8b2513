"""What changes while a trial trains, from round to round, and back from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.dataset import Dataset
from elta_tune.method.scores import method_bins
from elta_tune.records import Best
from elta_tune.training.features import Features, backbone_state, compute_features, with_features
from elta_tune.training.head import HeadOnly
from elta_tune.training.model import AestheticModel, build_head, build_model, place, trained_state
from elta_tune.training.optimizer import build_optimizer, precision_of
from elta_tune.training.predict import Predictions
from elta_tune.training.seeding import stage_seed

if TYPE_CHECKING:
    import pandas as pd

Plain = TypeVar("Plain", "Selection", Predictions)
ARRAYS = ("truth", "scores", "distributions")


@dataclass(frozen=True)
class Selection:
    """The M of `pool_size` images of the pool that round `round` trains on.

    `rows` (M,) of the pool, `scores` (M,) on the data set's own scale, `raw` and `sharpened` (M, K) distributions.
    """

    round: int
    pool_size: int
    ids: NDArray[np.object_]
    rows: Tensor
    scores: NDArray[np.float64]
    raw: Tensor
    sharpened: Tensor

    def to_frame(self) -> pd.DataFrame:
        """`image_id,score,confidence,sharpened_1,…,raw_1,…`; the first share is that of the lowest rating."""
        import pandas as pd

        columns = {"image_id": self.ids, "score": self.scores, "confidence": self.sharpened.amax(dim=1).numpy()}
        for kind, distributions in (("sharpened", self.sharpened), ("raw", self.raw)):
            columns |= {f"{kind}_{k}": column.numpy() for k, column in enumerate(distributions.T, start=1)}
        return pd.DataFrame(columns)


@dataclass
class TrainingState:
    """What changes while a trial trains; `epoch` of the running `round` are done."""

    model: AestheticModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    round: int = 0
    epoch: int = 0
    selection: Selection | None = None
    best: Best | None = None
    best_predictions: Predictions | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Weights of a backbone that is no longer trained, while `model` is only the head."""

    @property
    def weights(self) -> dict[str, Tensor]:
        """A copy of the whole model's weights on the CPU."""
        return {**self.frozen, **trained_state(self.model)}


def to_plain(record: Selection | Predictions) -> dict[str, Any]:
    """A record as tensors and plain values: what `torch.load(weights_only=True)` takes."""
    values = {item.name: getattr(record, item.name) for item in fields(record)}
    values["ids"] = list(values["ids"])
    return {name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}


def from_plain(kind: type[Plain], plain: dict[str, Any]) -> Plain:
    """The way back of `to_plain`."""

    def restored(name: str, value: Any) -> Any:
        if name == "ids":
            return np.array(value, dtype=object)
        return value.numpy() if name in ARRAYS and value is not None else value

    return kind(**{name: restored(name, value) for name, value in plain.items()})


def new_model(config: TrialConfig, dataset: Dataset, *, round: int) -> AestheticModel:
    """A new model on the CPU; only its head if the images are already features."""
    bins = None if dataset.bins is None else method_bins(dataset.bins, dataset.scale)
    seed = stage_seed(config.seed, "model", round)
    images = next(iter(dataset.train.images.values()))  # features are the same at any size
    if isinstance(images, Features):
        return HeadOnly(build_head(config.model, width=images.width, bins=bins, seed=seed), images.digest)
    return build_model(config.model, bins=bins, size=config.data.crop, seed=seed)


def new_state(config: TrialConfig, dataset: Dataset, device: torch.device, *, round: int) -> TrainingState:
    """The state before the first epoch."""
    model = place(new_model(config, dataset, round=round), device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(config, device) == torch.float16)
    return TrainingState(model, _optimizer(model, config, scaler), scaler)


def _optimizer(model: AestheticModel, config: TrialConfig, scaler: torch.amp.GradScaler) -> torch.optim.Optimizer:
    return build_optimizer(model, config.optim, fused=model.device.type == "cpu" and not scaler.is_enabled())


def next_round(
    state: TrainingState, config: TrialConfig, dataset: Dataset, device: torch.device
) -> tuple[TrainingState, Dataset]:
    """The state at the start of its round, and the data that it trains on: those of the head's round are features."""
    fresh = new_state(config, dataset, device, round=state.round)
    is_last = state.round > config.self_training.rounds
    if is_last or config.self_training.init == "continue":
        fresh.model.load_state_dict(state.best_weights)
    state = replace(state, model=fresh.model, optimizer=fresh.optimizer, scaler=fresh.scaler)
    return _head_alone(state, config, dataset) if is_last else (state, dataset)


def _head_alone(state: TrainingState, config: TrialConfig, dataset: Dataset) -> tuple[TrainingState, Dataset]:
    """From now on trains only the head, on features of the model in its present state (docs/method.md §5)."""
    pool = None if state.selection is None else dataset.pool
    data = with_features(
        replace(dataset, pool=pool), config, lambda split: compute_features(state.model, split, config)
    )
    frozen = backbone_state(trained_state(state.model))
    model = HeadOnly(state.model.head, None)
    return replace(state, model=model, optimizer=_optimizer(model, config, state.scaler), frozen=frozen), data


def checkpoint_of(state: TrainingState, weights: dict[str, Tensor]) -> dict[str, Any]:
    """All that is needed to go on, best weights apart, as tensors and plain values."""
    assert state.best is not None
    assert state.best_predictions is not None
    selection = state.selection
    return {
        "step": state.step,
        "round": state.round,
        "epoch": state.epoch,
        "model": weights,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "best": {**asdict(state.best), "predictions": to_plain(state.best_predictions)},
        "selection": None if selection is None else to_plain(selection),
    }


def restored(
    state: TrainingState, config: TrialConfig, dataset: Dataset, resume: dict[str, Any]
) -> tuple[TrainingState, Dataset]:
    """A new state as it was at an epoch, and the data that it trained on."""
    state.model.load_state_dict(resume["model"])
    state.step, state.round, state.epoch = resume["step"], resume["round"], resume["epoch"]
    best = dict(resume["best"])
    state.best_predictions = from_plain(Predictions, best.pop("predictions"))
    state.best = Best(**best)
    state.best_weights = resume["best_weights"]
    selection = resume["selection"]
    state.selection = None if selection is None else from_plain(Selection, selection)
    data = dataset
    if state.round > config.self_training.rounds and state.epoch > 0:
        state, data = _head_alone(state, config, dataset)
    state.optimizer.load_state_dict(resume["optimizer"])
    state.scaler.load_state_dict(resume["scaler"])
    return state, data
