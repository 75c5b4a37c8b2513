from __future__ import annotations

import math

import pytest
import torch

from elta_tune.method.scores import mean_score
from elta_tune.method.sharpening import select, sharpen


def literal_sharpen(logits, scores, temperature):
    mean = sum(scores) / len(scores)
    rows = []
    for row, score in zip(logits, scores, strict=True):
        exponentials = [math.exp(z * math.exp(temperature * abs(mean - score))) for z in row]
        rows.append([value / sum(exponentials) for value in exponentials])
    return rows


def test_sharpened_pool_and_selection_are_the_released_code_s(released):
    expected = released["expected"]
    scores = mean_score(released["logits"].softmax(dim=1), torch.arange(1.0, 11.0))
    torch.testing.assert_close(scores, torch.tensor(expected["pool_scores"]), atol=1e-5, rtol=0)
    sharpened = sharpen(released["logits"], scores, released["beta"])
    torch.testing.assert_close(sharpened, torch.tensor(expected["sharpened"]), atol=1e-5, rtol=0)
    confidence = torch.tensor(expected["confidence"])
    torch.testing.assert_close(sharpened.amax(dim=1), confidence, atol=1e-5, rtol=0)
    assert select(sharpened, released["threshold"]).nonzero().flatten().tolist() == expected["picked"]


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sharpening_follows_its_formula(temperature, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 10, dtype=dtype, generator=generator)
    scores = 3 + 4 * torch.rand(20, dtype=dtype, generator=generator)
    sharpened = sharpen(logits, scores, temperature)
    expected = literal_sharpen(logits.tolist(), scores.tolist(), temperature)
    assert sharpened.dtype == dtype
    torch.testing.assert_close(sharpened, torch.tensor(expected, dtype=dtype), atol=1e-5, rtol=0)


def test_sharpening_that_overflows_ends_at_certainty():
    logits = torch.tensor([[0.0, 1.0, -2.0], [0.1, 0.0, 0.0], [3.0, 3.0, 0.0]])
    sharpened = sharpen(logits, torch.tensor([1.0, 10.0, 1.0]), 1000.0)
    assert sharpened.tolist() == [[0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]]


def test_equal_scores_leave_the_softmax():
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sharpen(logits, torch.full((4,), 5.0), 1.25), logits.softmax(dim=1))


def test_an_empty_pool_selects_nothing():
    sharpened = sharpen(torch.empty(0, 10), torch.empty(0), 1.25)
    assert sharpened.shape == (0, 10)
    assert select(sharpened, 0.75).shape == (0,)


def test_a_diverged_pool_selects_nothing():
    sharpened = sharpen(torch.full((2, 3), math.nan), torch.tensor([math.nan, 5.0]), 1.25)
    assert select(sharpened, 0.0).tolist() == [False, False]


def test_selection_is_strictly_above_the_threshold():
    kept = select(torch.tensor([[0.75, 0.25], [0.7500001, 0.2499999], [0.3, 0.7]]), 0.75)
    assert kept.dtype == torch.bool
    assert kept.tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(3,), (4, 1)])
def test_scores_that_are_not_one_per_row_are_refused(shape):
    with pytest.raises(ValueError, match="same number of rows"):
        sharpen(torch.ones(4, 10), torch.ones(*shape), 1.25)
