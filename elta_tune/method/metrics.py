"""What is measured on a split (docs/method.md §7): NumPy float64, on the data set's own scale.

Nothing here crashes or warns over a diverged or constant prediction: a metric that is not defined is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]

DIRECTIONS: dict[str, str] = {
    "srcc": "maximize",
    "plcc": "maximize",
    "accuracy": "maximize",
    "mae": "minimize",
    "rmse": "minimize",
    "emd_r1": "minimize",
    "emd_r2": "minimize",
    "mae_low": "minimize",
    "mae_mid": "minimize",
    "mae_high": "minimize",
    "bmae": "minimize",
    "gmean": "minimize",
}
"""Where each metric that may be an objective should go; biases, counts and the spread have no better side."""

SCALE_BINS = 18
"""Bins of `bmae`: 0.5 wide on 1…10."""

SMALLEST_BIN = 5
"""Bins of fewer images are left out of `bmae`."""


def tail_cuts(scores: ArrayLike) -> tuple[float, float]:
    """The 20th and 80th percentile of the training split's MOS (N,), where the tails begin.

    Raises:
        ValueError: there are no scores.
    """
    low, high = np.percentile(_vector("scores", scores), [20, 80])
    return float(low), float(high)


def evaluate(
    predicted: ArrayLike,
    true: ArrayLike,
    *,
    threshold: float = 5.0,
    scale: tuple[float, float] = (1.0, 10.0),
    tail_cuts: tuple[float, float] | None = None,
    predicted_distributions: ArrayLike | None = None,
    true_distributions: ArrayLike | None = None,
    higher_is_better: bool = True,
) -> dict[str, float]:
    """All metrics that the arguments allow.

    Args:
        predicted: predicted MOS (N,), N ≥ 1.
        true: true MOS (N,).
        threshold: a MOS above it counts as beautiful in ``accuracy``.
        scale: lowest and highest possible score; ``bmae`` divides it into 18 bins.
        tail_cuts: (low, high), the tails' inclusive bounds, from `tail_cuts`; an image on both is in both.
        predicted_distributions: (N, K).
        true_distributions: (N, K).
        higher_is_better: False where a low score is a good one, as in DMOS: images below the threshold count as
            beautiful, and the low and high tails are swapped; all else stays, on the scale as it is.

    Returns:
        - ``srcc``, ``plcc``: Spearman's and Pearson's correlation; NaN where either side is constant.
        - ``accuracy``: share of images on the same side of the threshold.
        - ``mae``, ``rmse``; ``gmean``: the geometric mean of (absolute errors + 1e-3).
        - ``bmae``: MAE averaged over the bins of true MOS that hold 5 images or more; NaN without any.
        - ``std_ratio``: std(predicted) / std(true).
        - with tail cuts ``mae_``, ``bias_`` (mean of predicted − true) and ``n_`` (images) of ``low``,
          ``mid`` and ``high``; NaN in a segment without images.
        - with both distributions ``emd_r1``, ``emd_r2``: mean_i (mean_k |P_ik − Q_ik|^r)^(1/r) of the CDFs.

        A value that is not finite makes every metric that it enters NaN.

    Raises:
        ValueError: shapes differ, or there are no images.
    """
    predicted, true = _vector("predicted", predicted), _vector("true", true)
    _check_same_shape("predicted", predicted, "true", true)
    errors = predicted - true
    return {
        **_correlations(predicted, true),
        "accuracy": _accuracy(predicted, true, threshold, higher_is_better),
        "mae": float(np.abs(errors).mean()),
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "bmae": _bin_balanced_mae(errors, true, scale),
        "gmean": float(np.exp(np.log(np.abs(errors) + 1e-3).mean())),
        "std_ratio": float(predicted.std() / true.std()) if varies(true) else np.nan,
        **_segment_metrics(errors, true, tail_cuts, higher_is_better),
        **_distribution_distances(predicted_distributions, true_distributions, len(true)),
    }


def _correlations(predicted: Values, true: Values) -> dict[str, float]:
    """Spearman is Pearson of the ranks; `scipy.stats.spearmanr` warns over its p-value at two images."""
    from scipy import stats  # slow; search spaces need only DIRECTIONS

    if not (varies(predicted) and varies(true)):
        return {"srcc": np.nan, "plcc": np.nan}
    ranks = stats.rankdata(predicted), stats.rankdata(true)
    return {
        "srcc": float(stats.pearsonr(*ranks).statistic),
        "plcc": float(stats.pearsonr(predicted, true).statistic),
    }


def varies(values: Values) -> bool:
    """False for constants (up to rounding, by SciPy's own rule) and where a value is NaN."""
    return bool(np.linalg.norm(values - values.mean()) > 2e-12 * np.abs(values.mean()))


def _accuracy(predicted: Values, true: Values, threshold: float, higher_is_better: bool) -> float:
    is_beautiful = np.greater if higher_is_better else np.less
    agree = is_beautiful(predicted, threshold) == is_beautiful(true, threshold)
    return float(np.where(np.isnan(predicted) | np.isnan(true), np.nan, agree).mean())


def _bin_balanced_mae(errors: Values, true: Values, scale: tuple[float, float]) -> float:
    """The highest bin includes its upper end; scores beyond the scale count in its outermost bins."""
    if np.isnan(errors).any():  # also one in a bin that would be left out
        return np.nan
    inner_edges = np.linspace(*scale, SCALE_BINS + 1)[1:-1]
    bins = np.digitize(true, inner_edges)
    filled = np.flatnonzero(np.bincount(bins, minlength=SCALE_BINS) >= SMALLEST_BIN)
    return _mean(np.array([np.abs(errors[bins == index]).mean() for index in filled]))


def segments(
    scores: Values, tail_cuts: tuple[float, float], higher_is_better: bool = True
) -> dict[str, NDArray[np.bool_]]:
    """Which scores (N,) are in the low tail, between the tails, and in the high tail: (N,) each.

    Args:
        tail_cuts: the tails' inclusive bounds, in ascending order; an image on both is in both.
        higher_is_better: False where the low tail, that of the poor images, has the high scores.
    """
    below, above = scores <= tail_cuts[0], scores >= tail_cuts[1]
    poor, good = (below, above) if higher_is_better else (above, below)
    return {"low": poor, "mid": (scores > tail_cuts[0]) & (scores < tail_cuts[1]), "high": good}


def _segment_metrics(
    errors: Values, true: Values, tail_cuts: tuple[float, float] | None, higher_is_better: bool
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name, members in segments(true, tail_cuts, higher_is_better).items() if tail_cuts else ():
        metrics[f"mae_{name}"] = _mean(np.abs(errors[members]))
        metrics[f"bias_{name}"] = _mean(errors[members])
        metrics[f"n_{name}"] = int(members.sum())
    return metrics


def _distribution_distances(predicted: ArrayLike | None, true: ArrayLike | None, count: int) -> dict[str, float]:
    if predicted is None or true is None:
        return {}
    predicted, true = _finite_or_nan(predicted), _finite_or_nan(true)
    _check_same_shape("predicted_distributions", predicted, "true_distributions", true)
    if true.ndim != 2 or len(true) != count:
        raise ValueError(f"distributions must have the shape ({count}, K), not {true.shape}")
    distances = np.abs(np.cumsum(predicted - true, axis=1))
    return {
        "emd_r1": float(distances.mean()),
        "emd_r2": float(np.sqrt(np.square(distances).mean(axis=1)).mean()),
    }


def _mean(values: Values) -> float:
    return float(values.mean()) if values.size else np.nan


def _finite_or_nan(values: ArrayLike) -> Values:
    """float64, with NaN for infinities: they would warn on their way to becoming NaN."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def _vector(name: str, values: ArrayLike) -> Values:
    array = _finite_or_nan(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must have the shape (N,) with at least one image, not {array.shape}")
    return array


def _check_same_shape(first_name: str, first: Values, second_name: str, second: Values) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"{first_name} and {second_name} must have the same shape, not {first.shape} and {second.shape}"
        )
