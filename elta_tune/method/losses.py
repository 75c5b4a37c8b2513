"""The task losses (docs/method.md §3) and FLSA, feature-label similarity alignment (docs/method.md §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from elta_tune.method.scores import score_distances

ROOT_FLOOR = 1e-12
"""Added inside the EMD's root, so that its gradient is finite where prediction and target agree."""


def emd_loss(predicted: Tensor, target: Tensor, *, reduction: str = "batch") -> Tensor:
    """Earth mover's distance (r = 2) between rating distributions, with CDFs P and Q.

    Args:
        predicted: (B, K), rows that sum to 1.
        target: (B, K), likewise.
        reduction: ``batch``: √ mean_{i,k} (P_ik − Q_ik)², the released code;
            ``sample``: mean_i √ mean_k (P_ik − Q_ik)², NIMA (Talebi and Milanfar 2018, eq. 1).

    Returns:
        A scalar in 0…1.

    Raises:
        ValueError: the shapes differ, or there is no such reduction.
    """
    _check_same_shape(predicted, target)
    squares = (predicted - target).cumsum(dim=-1).square()
    if reduction == "batch":
        return (squares.mean() + ROOT_FLOOR).sqrt()
    if reduction == "sample":
        return (squares.mean(dim=-1) + ROOT_FLOOR).sqrt().mean()
    raise ValueError(f"reduction must be 'batch' or 'sample', not {reduction!r}")


def mse_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of scores / 10, for data that has scores only.

    Args:
        predicted: (B,) or (B, 1) in 0…1.
        target: likewise, in the same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: the shapes differ, (B,) and (B, 1) too: they would broadcast to (B, B).
    """
    _check_same_shape(predicted, target)
    return (predicted - target).square().mean()


def similarity_loss(features: Tensor, scores: Tensor) -> Tensor:
    """L_sim = mean_ij (M^f_ij − M^l_ij)², the diagonal included.

        M^f_ij = cos(f_i, f_j)          M^l_ij = 1 − |s_i − s_j| / (max s − min s)

    Args:
        features: f (B, D). A row of zeros has the cosine 0 with every row, and a finite gradient.
        scores: s (B,) on 1…10. Where all are equal, M^l = 1.

    Returns:
        A scalar in 0…4.

    Raises:
        ValueError: the scores are not one number per row of the features.
    """
    if features.ndim != 2 or scores.shape != features.shape[:1]:
        raise ValueError(
            "features (B, D) and scores (B,) must have the same number of rows, not the shapes "
            f"{tuple(features.shape)} and {tuple(scores.shape)}"
        )
    unit = features / _one_where_zero(torch.linalg.vector_norm(features, dim=1, keepdim=True))
    feature_similarity = unit @ unit.T
    label_similarity = 1 - score_distances(scores) / _one_where_zero(scores.max() - scores.min())
    return (feature_similarity - label_similarity).square().mean()


def _one_where_zero(divisor: Tensor) -> Tensor:
    """The divisor, made safe; an epsilon instead would blow up the gradient of a zero row."""
    return torch.where(divisor > 0, divisor, 1.0)


def _check_same_shape(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must have the same shape, not {tuple(predicted.shape)} and {tuple(target.shape)}"
        )
