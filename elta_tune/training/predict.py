"""What a model predicts for a split, and how good that is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.batches import in_order, prefetch
from elta_tune.data.dataset import ImageSet, Split
from elta_tune.method import metrics
from elta_tune.method.scores import RatingScale, from_method_scale
from elta_tune.training.model import AestheticModel

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Predictions:
    """Predictions for a split, and the true values where known, on the data set's own scale.

    `ids`, `truth` and `scores` (N,); `distributions` and `logits` (N, K) only with an `emd` head.
    """

    ids: NDArray[np.object_]
    truth: NDArray[np.float64] | None
    scores: NDArray[np.float64]
    distributions: NDArray[np.float32] | None
    logits: Tensor | None

    def to_frame(self) -> pd.DataFrame:
        """`image_id,gt,score[,score2…]`, the released code's columns: score2 is the share of the lowest rating."""
        import pandas as pd

        columns: dict[str, object] = {"image_id": self.ids, "gt": self.truth, "score": self.scores}
        for k, column in enumerate(() if self.distributions is None else self.distributions.T):
            columns[f"score{k + 2}"] = column
        return pd.DataFrame(columns)


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """float32 in full: on CUDA torch rounds what enters convolutions to TF32's 10 bits, by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@exact_convolutions()
@torch.inference_mode()
def predict_batch(model: AestheticModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """What a model that evaluates says of images (B, S, S, 3): outputs (B, K) or (B, 1), and scores (B,) on 1…10.

    Both are float32, on the CPU.
    """
    _, outputs = model(model.normalized(batch))
    return outputs.float().cpu(), model.head.scores(outputs.float()).cpu()


def predict(model: AestheticModel, split: ImageSet, config: TrialConfig, scale: tuple[float, float]) -> Predictions:
    """Predicts every image of a split, in order, in float32, with the evaluation's own batch size."""
    device = model.device
    images = split.images[config.data.crop]
    model.eval()
    logits: list[Tensor] = []
    scores: list[Tensor] = []
    for _, batch in prefetch(images, in_order(len(images), config.evaluation.batch_size), device):
        outputs, of_batch = predict_batch(model, batch)
        logits.append(outputs)
        scores.append(of_batch)
    own = from_method_scale(torch.cat(scores).double().numpy(), scale)
    truth = split.scores if isinstance(split, Split) else None
    if config.model.head == "mse":
        return Predictions(split.ids, truth, own, None, None)
    joined = torch.cat(logits)
    return Predictions(split.ids, truth, own, joined.softmax(dim=1).numpy(), joined)


def evaluate(predictions: Predictions, split: Split, by: RatingScale) -> dict[str, float]:
    """All metrics of docs/method.md §7; those of distributions only where people gave them."""
    both = predictions.distributions is not None and split.distributions is not None and not by.is_spread
    return metrics.evaluate(
        predictions.scores,
        split.scores,
        threshold=by.threshold,
        scale=by.scale,
        tail_cuts=by.tail_cuts,
        predicted_distributions=predictions.distributions if both else None,
        true_distributions=split.distributions if both else None,
        higher_is_better=by.higher_is_better,
    )
