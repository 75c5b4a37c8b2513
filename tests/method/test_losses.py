from __future__ import annotations

import math

import pytest
import torch

from elta_tune.method.losses import emd_loss, mse_loss, similarity_loss
from elta_tune.method.scores import mean_score


def random_batch(rows=5, bins=10, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, rows, bins, dtype=dtype, generator=generator)
    return logits.softmax(dim=2).unbind()


def literal_emd(predicted, target, reduction):
    squares = []
    for p_row, q_row in zip(predicted, target, strict=True):
        p_sum, q_sum, row = 0.0, 0.0, []
        for p, q in zip(p_row, q_row, strict=True):
            p_sum, q_sum = p_sum + p, q_sum + q
            row.append((p_sum - q_sum) ** 2)
        squares.append(sum(row) / len(row))
    if reduction == "batch":
        return math.sqrt(sum(squares) / len(squares))
    return sum(math.sqrt(value) for value in squares) / len(squares)


def literal_similarity(features, scores):
    total = 0.0
    for f_i, s_i in zip(features, scores, strict=True):
        for f_j, s_j in zip(features, scores, strict=True):
            dot = sum(a * b for a, b in zip(f_i, f_j, strict=True))
            cosine = dot / math.sqrt(sum(a * a for a in f_i)) / math.sqrt(sum(b * b for b in f_j))
            label = 1 - abs(s_i - s_j) / (max(scores) - min(scores))
            total += (cosine - label) ** 2
    return total / len(scores) ** 2


@pytest.mark.parametrize("reduction", ["batch", "sample"])
def test_emd_is_the_released_code_s(released, reduction):
    loss = emd_loss(released["predictions"], released["targets"], reduction=reduction)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(released["expected"][f"emd_{reduction}"], abs=1e-5)


@pytest.mark.parametrize("reduction", ["batch", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emd_follows_its_formula(reduction, dtype):
    predicted, target = random_batch(dtype=dtype)
    loss = emd_loss(predicted, target, reduction=reduction)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(literal_emd(predicted.tolist(), target.tolist(), reduction), abs=1e-6)


def test_emd_reduces_over_the_batch_by_default():
    predicted, target = random_batch()
    assert emd_loss(predicted, target) == emd_loss(predicted, target, reduction="batch")
    assert emd_loss(predicted, target) > emd_loss(predicted, target, reduction="sample")


@pytest.mark.parametrize("reduction", ["batch", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emd_of_a_perfect_prediction_has_a_finite_gradient(reduction, dtype):
    predicted, _ = random_batch(dtype=dtype)
    target = predicted.clone()
    predicted.requires_grad_()
    loss = emd_loss(predicted, target, reduction=reduction)
    loss.backward()
    assert loss.item() < 1e-5
    assert predicted.grad is not None and predicted.grad.abs().max() < 1


def test_emd_gradient_is_the_loss_s():
    predicted, target = random_batch(rows=3, bins=4)
    predicted.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: emd_loss(p, target, reduction="sample"), predicted)


def test_emd_refuses_another_reduction_and_other_shapes():
    predicted, target = random_batch()
    with pytest.raises(ValueError, match="'batch' or 'sample', not 'mean'"):
        emd_loss(predicted, target, reduction="mean")
    with pytest.raises(ValueError, match=r"same shape, not \(5, 10\) and \(4, 10\)"):
        emd_loss(predicted, target[:4])


def test_mse_is_the_mean_square_and_never_broadcasts():
    predicted, target = torch.tensor([[0.5], [0.8]]), torch.tensor([[0.3], [0.9]])
    assert mse_loss(predicted, target).item() == pytest.approx((0.2**2 + 0.1**2) / 2)
    with pytest.raises(ValueError, match=r"same shape, not \(2, 1\) and \(2,\)"):
        mse_loss(predicted, target.squeeze(1))


def test_similarity_loss_is_the_released_code_s(released):
    scores = mean_score(released["targets"], torch.arange(1.0, 11.0))
    loss = similarity_loss(released["features"], scores)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(released["expected"]["similarity_loss"], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarity_loss_follows_its_formula(dtype):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(7, 4, dtype=dtype, generator=generator)
    scores = 1 + 9 * torch.rand(7, dtype=dtype, generator=generator)
    loss = similarity_loss(features, scores)
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(literal_similarity(features.tolist(), scores.tolist()), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equal_scores_want_parallel_features(batch_size):
    scores = torch.full((batch_size,), 5.3)
    parallel = torch.tensor([[1.0, 2.0]]) * torch.arange(1, batch_size + 1)[:, None]
    assert similarity_loss(parallel, scores).item() == pytest.approx(0, abs=1e-10)
    if batch_size == 2:
        assert similarity_loss(torch.eye(2), scores).item() == pytest.approx(0.5)


@pytest.mark.parametrize("scores", [[5.0, 5.0, 5.0], [4.0, 5.0, 7.0]])
def test_a_zero_feature_row_has_a_moderate_gradient(scores):
    features = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-0.3, 0.2]], requires_grad=True)
    loss = similarity_loss(features, torch.tensor(scores))
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None and features.grad.isfinite().all() and features.grad.abs().max() < 10


def test_similarity_gradient_is_the_loss_s():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    scores = torch.tensor([3.0, 5.0, 5.0, 6.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: similarity_loss(f, scores), features)


@pytest.mark.parametrize("shape", [(5,), (4, 1)])
def test_similarity_refuses_scores_that_are_not_one_per_row(shape):
    with pytest.raises(ValueError, match="same number of rows"):
        similarity_loss(torch.ones(4, 3), torch.ones(*shape))
