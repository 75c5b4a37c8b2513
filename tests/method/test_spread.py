"""Scores that are spread over bins keep their mean and look like the Gaussian that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elta_tune.config import DataConfig
from elta_tune.data.readers import read_ratings
from elta_tune.errors import DataError
from elta_tune.method.spread import spread_scores


@pytest.mark.parametrize(("low", "high", "count"), [(1, 10, 10), (0, 1, 5), (0, 100, 21), (1, 5, 2)])
@pytest.mark.parametrize("steps", [0.25, 0.5, 1, 3])
def test_the_mean_is_the_score_up_to_the_ends_of_the_scale(low: float, high: float, count: int, steps: float) -> None:
    bins = np.linspace(low, high, count)
    step = bins[1] - bins[0]
    scores = np.concatenate([[low, high], np.random.default_rng(0).uniform(low, high, 500)])
    spread = spread_scores(scores, bins, steps * step)
    assert spread.shape == (502, count)
    assert spread.dtype == np.float32
    assert (spread >= 0).all()
    np.testing.assert_allclose(spread.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(spread.astype(float) @ bins, scores, atol=2e-3 * step)
    np.testing.assert_allclose(spread[:2], np.eye(count)[[0, -1]], atol=1e-4)


def test_far_from_the_ends_it_is_the_gaussian_itself() -> None:
    bins = np.arange(0.0, 101.0, 5.0)
    (spread,) = spread_scores(np.array([52.0]), bins, 10.0)
    gaussian = np.array([np.exp(-((rating - 52.0) ** 2) / (2 * 10.0**2)) for rating in bins])
    np.testing.assert_allclose(spread, gaussian / gaussian.sum(), atol=1e-4)
    deviation = np.sqrt(spread.astype(float) @ (bins - 52.0) ** 2)
    assert deviation == pytest.approx(10.0, rel=0.01)


def rated(tmp_path: Path, text: str) -> Path:
    """A rating file."""
    file = tmp_path / "train.csv"
    file.write_text(text)
    return file


def test_a_recipe_spreads_scores_over_the_whole_scale(tmp_path: Path) -> None:
    file = rated(tmp_path, "image,score\na,0\nb,6.5\n")
    ratings = read_ratings(file, DataConfig(spread=1.0, bins=11))
    assert ratings.is_spread
    assert ratings.scores.tolist() == [0, 6.5]  # as they were
    assert ratings.bins.tolist() == list(range(11))
    np.testing.assert_allclose(ratings.distributions @ ratings.bins, [0, 6.5], atol=2e-3)
    assert not read_ratings(file, DataConfig()).is_spread


def test_votes_are_not_spread(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.spread: the file has distributions of 2 bins"):
        read_ratings(rated(tmp_path, "image,count_1,count_2\na,1,2\n"), DataConfig(spread=1.0))


def test_spread_too_narrow_for_the_bins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data\.spread: 0\.2 is less than a quarter of the distance of 10 bins \(1\.11\)"
    ):
        read_ratings(rated(tmp_path, "image,score\na,0\n"), DataConfig(spread=0.2))
