from __future__ import annotations

import numpy as np
import pytest
import torch

from elta_tune.method.scores import from_method_scale, mean_score, score_distances, to_method_scale


def test_mean_score_is_the_released_codes(released):
    scores = mean_score(released["targets"], torch.arange(1.0, 11.0))
    torch.testing.assert_close(scores, torch.tensor(released["expected"]["scores"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_score_weights_each_bin_by_its_share(dtype):
    distribution = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.25, 0.75]], dtype=dtype)
    scores = mean_score(distribution, torch.tensor([1.0, 2.5, 4.0], dtype=dtype))
    assert scores.dtype == dtype
    assert scores.tolist() == [2.5, 3.625]


def test_score_distances_are_absolute_and_refuse_columns():
    assert score_distances(torch.tensor([1.0, 4.0])).tolist() == [[0.0, 3.0], [3.0, 0.0]]
    with pytest.raises(ValueError, match=r"\(B,\), not \(2, 1\)"):
        score_distances(torch.ones(2, 1))


def test_scales_map_onto_one_to_ten_and_back():
    scores = np.array([0.0, 25.0, 100.0])
    np.testing.assert_allclose(to_method_scale(scores, (0, 100)), [1, 3.25, 10])
    np.testing.assert_allclose(from_method_scale(to_method_scale(scores, (-20, 130)), (-20, 130)), scores, atol=1e-12)
