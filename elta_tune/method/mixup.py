"""TFA, tail feature augmentation: mixes rows of a batch in feature space, rare scores first (docs/method.md §1).

    P(i)   = softmax_i ( |s̄ − s_i| / τ1 )                  the anchor: far from the batch's mean score
    P(j|i) = softmax_{j≠i} ( τ2 / (|s_i − s_j| + 0.01) )    its partner: of a like score
    λ      = P(i) / (P(i) + P(j))
    f̃ = λ f_i + (1−λ) f_j        ỹ = λ y_i + (1−λ) y_j

Probabilities stay in log space: at τ2 = 10 the partner's exponent reaches 1000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elta_tune.method.scores import score_distances


def anchor_probabilities(scores: Tensor, tau_1: float) -> Tensor:
    """P(i) = softmax_i(|s̄ − s_i| / τ1): (B,) → (B,).

    Raises:
        ValueError: τ1 is not positive.
    """
    return _anchor_logits(scores, tau_1).softmax(dim=0)


def partner_probabilities(scores: Tensor, tau_2: float) -> Tensor:
    """P(j|i) = softmax_{j≠i}(τ2 / (|s_i − s_j| + 0.01)): (B,) → (B, B).

    Returns:
        Row i is P(·|i), with a zero on the diagonal; B = 1 has no partner, so its one row is zero.

    Raises:
        ValueError: τ2 is not positive, or the scores are not one number per row.
    """
    return _partner_logits(scores, tau_2).softmax(dim=1).masked_fill(_diagonal(scores), 0.0)


def mixing_weights(scores: Tensor, tau_1: float) -> Tensor:
    """λ_ij = P(i) / (P(i) + P(j)) = sigmoid(log P(i) − log P(j)): (B,) → (B, B).

    Raises:
        ValueError: τ1 is not positive.
    """
    logits = _anchor_logits(scores, tau_1)  # the softmax's normaliser cancels in the difference
    return torch.sigmoid(logits[:, None] - logits[None, :])


def mix(
    features: Tensor,
    targets: Tensor,
    scores: Tensor,
    *,
    tau_1: float,
    tau_2: float,
    pairs: float = 1,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Appends n mixed rows to a batch; differentiable in features and targets.

    Args:
        features: f (B, …), usually (B, D).
        targets: y (B, …): distributions (B, K), or scores (B, 1) or (B,).
        scores: s (B,) on 1…10.
        tau_1: τ1 > 0; small: anchors far from the mean are strongly preferred.
        tau_2: τ2 > 0; large: partners of a like score are strongly preferred.
        pairs: n, at most B: an integer is a count, a float below 1 a fraction of the batch; 0 mixes nothing.
        alpha: None for the paper's fixed λ, else α ≥ 0.1: λ ~ Beta(2αw, 2α(1−w)) around the paper's w.
        generator: draws pairs and λ, on any device; None: torch's own on the CPU.

    Returns:
        features, targets and scores of B + n rows, the originals first; unchanged where B < 2.

    Raises:
        ValueError: an argument breaks its rule, or the numbers of rows differ.
    """
    _check_rows(features, targets, scores)
    if alpha is not None and not alpha >= 0.1:
        raise ValueError(f"alpha must be at least 0.1 or None, not {alpha}")
    count = _pair_count(pairs, len(scores))
    if count == 0:
        return features, targets, scores
    with torch.no_grad():
        anchors, partners = _draw_pairs(scores, tau_1, tau_2, count, generator)
        weights = mixing_weights(scores, tau_1)[anchors, partners]
        if alpha is not None:
            weights = _draw_weights(weights, alpha, generator)
    return (
        _append_mixed(features, anchors, partners, weights),
        _append_mixed(targets, anchors, partners, weights),
        _append_mixed(scores, anchors, partners, weights),
    )


def _anchor_logits(scores: Tensor, tau_1: float) -> Tensor:
    """log P(i) up to a constant, (B,)."""
    if not tau_1 > 0:
        raise ValueError(f"tau_1 must be positive, not {tau_1}")
    return (scores.mean() - scores).abs() / tau_1


def _partner_logits(scores: Tensor, tau_2: float) -> Tensor:
    """log P(j|i) up to a constant per row, (B, B); −inf on the diagonal."""
    if not tau_2 > 0:
        raise ValueError(f"tau_2 must be positive, not {tau_2}")
    logits = tau_2 / (score_distances(scores) + 0.01)
    return logits.masked_fill(_diagonal(scores), -torch.inf)


def _diagonal(scores: Tensor) -> Tensor:
    return torch.eye(len(scores), dtype=torch.bool, device=scores.device)


def _draw_pairs(
    scores: Tensor, tau_1: float, tau_2: float, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """n anchors i by P(i), all different, and for each a partner j ≠ i by P(j|i): both (n,)."""
    anchors = _draw_without_replacement(_anchor_logits(scores, tau_1), count, generator)
    partners = _draw_without_replacement(_partner_logits(scores, tau_2)[anchors], 1, generator)
    return anchors, partners.squeeze(1)


def _draw_without_replacement(logits: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Indices (…, n), drawn from softmax(logits) over the last dimension (…, B) by Gumbel top-k.

    Unlike `torch.multinomial` it works where probabilities underflow.
    """
    exponential = torch.empty(logits.shape, dtype=torch.float64, device=_device(generator))
    gumbel = -exponential.exponential_(generator=generator).log()
    return (logits + gumbel.to(logits)).topk(count, dim=-1).indices


def _draw_weights(mean: Tensor, alpha: float, generator: torch.Generator | None) -> Tensor:
    """λ ~ Beta(2αw, 2α(1−w)) for each w of `mean` (n,): a ratio of two gammas, in log space and float64."""
    mean = mean.to(_device(generator)).double().clamp(1e-6, 1 - 1e-6)  # MPS has no float64
    first = _draw_log_gamma(2 * alpha * mean, generator)
    second = _draw_log_gamma(2 * alpha * (1 - mean), generator)
    return torch.sigmoid(first - second)


def _draw_log_gamma(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    """The log of Gamma(a, 1) variates, also where the variates underflow (a down to 1e-7).

    log G(a) = log G(a + 1) + log(U) / a with U uniform on (0, 1] (Marsaglia and Tsang 2000, §6).
    """
    # private, since torch.distributions.Gamma takes no generator
    boosted = torch._standard_gamma(concentration + 1, generator=generator)
    uniform = torch.empty_like(concentration).uniform_(generator=generator)
    return boosted.log() + torch.log1p(-uniform) / concentration


def _append_mixed(rows: Tensor, anchors: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """(B, …) → (B + n, …), the last n being λ · rows_i + (1−λ) · rows_j."""
    weights = weights.to(rows).reshape(-1, *[1] * (rows.ndim - 1))
    return torch.cat([rows, weights * rows[anchors] + (1 - weights) * rows[partners]])


def _pair_count(pairs: float, batch_size: int) -> int:
    """n of docs/method.md §1, at most B."""
    if not pairs >= 0 or (isinstance(pairs, float) and pairs >= 1):
        raise ValueError(f"pairs must be an integer of at least 0 or a fraction below 1, not {pairs}")
    if pairs == 0 or batch_size < 2:
        return 0
    count = max(1, round(pairs * batch_size)) if isinstance(pairs, float) else int(pairs)
    return min(count, batch_size)


def _check_rows(features: Tensor, targets: Tensor, scores: Tensor) -> None:
    if scores.ndim != 1 or not len(features) == len(targets) == len(scores):
        raise ValueError(
            "features (B, …), targets (B, …) and scores (B,) must have the same number of rows, "
            f"not the shapes {tuple(features.shape)}, {tuple(targets.shape)} and {tuple(scores.shape)}"
        )


def _device(generator: torch.Generator | None) -> torch.device:
    """Where random numbers are drawn, whatever device they are used on."""
    return torch.device("cpu") if generator is None else generator.device
