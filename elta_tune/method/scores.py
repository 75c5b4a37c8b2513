"""Scores: their scales, the mean of a rating distribution (MOS), and the distances between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SCALE = (1.0, 10.0)
"""The method's scale: its τ1, τ2 and β act on distances between scores of AVA's 1…10."""
Scores = TypeVar("Scores", NDArray[np.float64], Tensor)


@dataclass(frozen=True)
class RatingScale:
    """What metrics are measured by: the scale of a data set's ratings, and what counts on it as beautiful or rare.

    Args:
        scale: lowest and highest possible score.
        threshold: a score above it counts as beautiful.
        tail_cuts: where the tails of the training split begin; None where that split is unknown.
        is_spread: whether distributions were made from scores.
        higher_is_better: False where a low rating is a good one: then a score below `threshold` counts as beautiful.
    """

    scale: tuple[float, float]
    threshold: float
    tail_cuts: tuple[float, float] | None
    is_spread: bool = False
    higher_is_better: bool = True


def mean_score(distribution: Tensor, bins: Tensor) -> Tensor:
    """The mean opinion score s_i = Σ_k v_k · y_ik.

    Args:
        distribution: y (B, K), rows that sum to 1.
        bins: v (K,), the score of each bin (AVA: 1…10).

    Returns:
        s (B,), in the unit of the bins.
    """
    return (distribution * bins).sum(dim=-1)  # no matmul: TF32 and autocast would round it


def score_distances(scores: Tensor) -> Tensor:
    """|s_i − s_j| of every pair of a batch: (B,) → (B, B).

    Raises:
        ValueError: the scores are not one number per row.
    """
    if scores.ndim != 1:
        raise ValueError(f"scores must have the shape (B,), not {tuple(scores.shape)}")
    return (scores[:, None] - scores[None, :]).abs()


def to_method_scale(scores: Scores, scale: tuple[float, float]) -> Scores:
    """Scores of a data set, mapped linearly onto 1…10 (docs/method.md §1)."""
    low, high = scale
    return SCALE[0] + (SCALE[1] - SCALE[0]) * (scores - low) / (high - low)


def from_method_scale(scores: Scores, scale: tuple[float, float]) -> Scores:
    """Inverse of `to_method_scale`."""
    low, high = scale
    return low + (high - low) * (scores - SCALE[0]) / (SCALE[1] - SCALE[0])


def method_bins(bins: NDArray[np.float64], scale: tuple[float, float]) -> Tensor:
    """Ratings (K,) of a data set's bins, on the method's 1…10, in float32."""
    return torch.from_numpy(to_method_scale(bins, scale)).float()
