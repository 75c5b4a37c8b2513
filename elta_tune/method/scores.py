"""Scores: the mean of a rating distribution (MOS), and the distances between them."""

from __future__ import annotations

from torch import Tensor


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
