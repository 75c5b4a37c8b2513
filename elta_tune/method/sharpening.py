"""APDS, adaptive sharpening of pseudo-labels (docs/method.md §4).

    z'_i = z_i · exp( β · |s̄ − ŝ_i| )      p_i = softmax(z'_i)      keep i  iff  max_k p_ik > θ

The further an image's predicted score is from the pool's mean, the more its distribution is sharpened.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sharpen(logits: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """p_i = softmax(z_i · exp(β · |s̄ − ŝ_i|)), with s̄ the mean of the scores given.

    Args:
        logits: z (N, K) of the whole pool: s̄ is its mean.
        scores: ŝ (N,), the predicted scores on 1…10.
        temperature: β ≥ 0; 0 leaves softmax(z).

    Returns:
        p (N, K), rows that sum to 1.

    Raises:
        ValueError: the scores are not one number per row of the logits.
    """
    if logits.ndim != 2 or scores.shape != logits.shape[:1]:
        raise ValueError(
            "logits (N, K) and scores (N,) must have the same number of rows, not the shapes "
            f"{tuple(logits.shape)} and {tuple(scores.shape)}"
        )
    exponents = temperature * (scores.mean() - scores).abs()
    factors = exponents.exp().clamp(max=torch.finfo(scores.dtype).max)
    gaps = logits - logits.amax(dim=1, keepdim=True)  # ≤ 0: where a product overflows it is −inf, never NaN
    return (gaps * factors[:, None]).softmax(dim=1)


def select(sharpened: Tensor, threshold: float) -> Tensor:
    """Which rows are kept: max_k p_ik > θ, strictly.

    Args:
        sharpened: p (N, K).
        threshold: θ in 0…1.

    Returns:
        (N,) bool.
    """
    return sharpened.amax(dim=1) > threshold
