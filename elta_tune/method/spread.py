"""Scores spread over bins, for a head that predicts distributions and data that has none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax


def spread_scores(scores: NDArray[np.float64], bins: NDArray[np.float64], width: float) -> NDArray[np.float32]:
    """Gaussians over bins, whose means are the scores.

    A Gaussian that is cut at the ends of a scale has its mean further inside; so its centre is moved out until the mean
    is the score (to about 1e-3 of a bin), up to all the mass on the last bin.

    Args:
        scores: (N,), within the bins.
        bins: (K,) equally spaced.
        width: standard deviation of the Gaussian before it is cut, in units of the scale.

    Returns:
        (N, K), each row sums to 1.
    """
    step = bins[1] - bins[0]
    # A bin's share falls by e^-(distance · step / width²) per step: this far out, all others have e^-15 together.
    reach = 15 * width**2 / step + step
    centres = np.linspace(bins[0] - reach, bins[-1] + reach, 20_001)
    means = _gaussian(centres, bins, width) @ bins
    return _gaussian(np.interp(scores, means, centres), bins, width).astype(np.float32)


def _gaussian(centres: NDArray[np.float64], bins: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = softmax(-((bins - centres[:, None]) ** 2) / (2 * width**2), axis=1)
    return shares
