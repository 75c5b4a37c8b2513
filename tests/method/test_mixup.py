from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from elta_tune.method import mixup
from elta_tune.method.mixup import anchor_probabilities, mix, mixing_weights, partner_probabilities
from elta_tune.method.scores import mean_score

SCORES = torch.tensor([4.2, 5.0, 5.1, 5.6, 7.3, 2.9])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mix_identity(scores, **settings):
    """Mixes one-hot features: a mixed row then shows which rows it is made of, and how strongly."""
    identity = torch.eye(len(scores), dtype=scores.dtype)
    settings = {"tau_1": 0.5, "tau_2": 2.0, "generator": seeded(), **settings}
    features, targets, mixed_scores = mix(identity, identity, scores, **settings)
    torch.testing.assert_close(features, targets)
    return features[len(scores) :], mixed_scores[len(scores) :]


def literal_anchor(scores, tau_1):
    mean = sum(scores) / len(scores)
    exponentials = [math.exp(abs(mean - score) / tau_1) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def literal_partner(scores, tau_2):
    rows = []
    for i, own in enumerate(scores):
        row = [math.exp(tau_2 / (abs(own - other) + 0.01)) for other in scores]
        row[i] = 0.0
        rows.append([value / sum(row) for value in row])
    return rows


# --- probabilities


def test_probabilities_are_the_released_codes(released):
    expected = released["expected"]
    scores = mean_score(released["targets"], torch.arange(1.0, 11.0))
    first = anchor_probabilities(scores, released["tau_1"])
    torch.testing.assert_close(first, torch.tensor(expected["first_probabilities"]), atol=1e-5, rtol=0)
    second = partner_probabilities(scores, released["tau_2"])
    torch.testing.assert_close(second, torch.tensor(expected["pair_probabilities"]), atol=1e-3, rtol=0)
    weights = mixing_weights(scores, released["tau_1"])
    torch.testing.assert_close(weights, torch.tensor(expected["mixing_weights"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tau_1", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("tau_2", [0.3, 2.0, 7.0])
def test_probabilities_follow_the_formulas(tau_1, tau_2):
    scores = SCORES.double()
    values = scores.tolist()
    first = literal_anchor(values, tau_1)
    weights = [[own / (own + other) for other in first] for own in first]
    np.testing.assert_allclose(anchor_probabilities(scores, tau_1), first, atol=1e-12)
    second = literal_partner(values, tau_2)
    np.testing.assert_allclose(partner_probabilities(scores, tau_2), second, atol=1e-12)
    np.testing.assert_allclose(mixing_weights(scores, tau_1), weights, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau_2", [10.0, 1e3])
def test_partner_probabilities_survive_large_tau_2(tau_2, dtype):
    scores = torch.tensor([5.0, 5.0, 5.0, 5.001, 8.0], dtype=dtype)
    probabilities = partner_probabilities(scores, tau_2)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5, dtype=dtype))
    assert probabilities[0].tolist() == pytest.approx([0, 0.5, 0.5, 0, 0], abs=1e-3)
    assert probabilities[4, 3] == probabilities[4].max()  # the nearest of its far partners
    assert probabilities.diagonal().eq(0).all()


@pytest.mark.parametrize("tau_1", [1e-3, 1e-6, 1e-30])
def test_tiny_tau_1_picks_the_farthest_row(tau_1):
    assert anchor_probabilities(SCORES, tau_1).tolist() == [0, 0, 0, 0, 1, 0]
    weights = mixing_weights(SCORES, tau_1)
    assert weights.isfinite().all()
    assert weights[4, :4].eq(1).all()
    assert weights.diagonal().eq(0.5).all()


def test_equal_scores_are_drawn_alike_and_mixed_half_and_half():
    scores = torch.full((4,), 5.3)
    torch.testing.assert_close(anchor_probabilities(scores, 0.05), torch.full((4,), 0.25))
    torch.testing.assert_close(partner_probabilities(scores, 10.0), (1 - torch.eye(4)) / 3)
    mixed, mixed_scores = mix_identity(scores, pairs=4)
    torch.testing.assert_close(mixed.sort(dim=1).values, torch.tensor([[0.0, 0.0, 0.5, 0.5]]).expand(4, 4))
    torch.testing.assert_close(mixed_scores, scores)


def test_a_single_row_has_no_partner():
    assert anchor_probabilities(torch.tensor([5.0]), 0.5).tolist() == [1.0]
    assert partner_probabilities(torch.tensor([5.0]), 2.0).tolist() == [[0.0]]


# --- draws


def chi_square_p(counts, probabilities):
    return stats.chisquare(counts, np.asarray(probabilities) * np.sum(counts)).pvalue


def test_anchors_and_partners_are_drawn_by_their_probabilities():
    scores, generator = SCORES.double(), seeded(1)
    first, second = literal_anchor(scores.tolist(), 2.0), literal_partner(scores.tolist(), 0.5)
    counts = np.zeros((6, 6))
    for _ in range(6000):
        anchors, partners = mixup._draw_pairs(scores, 2.0, 0.5, 1, generator)
        counts[int(anchors), int(partners)] += 1
    assert counts.diagonal().sum() == 0
    assert chi_square_p(counts.sum(axis=1), first) > 1e-3
    pairs = ~np.eye(6, dtype=bool)
    assert chi_square_p(counts[pairs], (np.array(first)[:, None] * second)[pairs]) > 1e-3


def test_anchors_are_drawn_without_replacement():
    scores, generator = SCORES[:4].double(), seeded(2)
    first = literal_anchor(scores.tolist(), 2.0)
    counts = np.zeros((4, 4))
    for _ in range(6000):
        anchors, _ = mixup._draw_pairs(scores, 2.0, 0.5, 2, generator)
        counts[tuple(anchors.tolist())] += 1
    expected = [[0 if i == j else p * q / (1 - p) for j, q in enumerate(first)] for i, p in enumerate(first)]
    different = ~np.eye(4, dtype=bool)
    assert counts.diagonal().sum() == 0
    assert chi_square_p(counts[different], np.array(expected)[different]) > 1e-3


def test_pairs_drawn_by_mix_follow_the_formulas():
    scores, generator = SCORES.double(), seeded(3)
    first, second = literal_anchor(scores.tolist(), 2.0), literal_partner(scores.tolist(), 0.5)
    joint = np.array(first)[:, None] * second
    counts = np.zeros((6, 6))
    for _ in range(3000):
        mixed, _ = mix_identity(scores, tau_1=2.0, tau_2=0.5, generator=generator)
        counts[tuple(mixed[0].nonzero().flatten().tolist())] += 1  # mixing is symmetric: unordered pairs
    upper = np.triu_indices(6, k=1)
    assert chi_square_p(counts[upper], (joint + joint.T)[upper]) > 1e-3


def test_every_row_is_an_anchor_once_if_probabilities_underflow():
    scores = torch.linspace(1, 10, 48)
    assert anchor_probabilities(scores, 0.01).eq(0).sum() > 30
    anchors, partners = mixup._draw_pairs(scores, 0.01, 10.0, 48, seeded())
    assert sorted(anchors.tolist()) == list(range(48))
    assert (anchors != partners).all()


# --- mixed rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target_shape", [(6, 10), (6, 1), (6,), (6, 2, 3)])
def test_mixed_rows_are_appended_by_the_paper_s_weights(dtype, target_shape):
    generator = seeded(5)
    features = torch.randn(6, 7, generator=generator, dtype=dtype)
    targets = torch.rand(*target_shape, generator=generator, dtype=dtype)
    scores = SCORES.to(dtype)
    rows, row_targets, row_scores = mix(features, targets, scores, tau_1=0.5, tau_2=2.0, pairs=4, generator=seeded(6))
    assert rows.shape == (10, 7)
    assert row_targets.shape == (10, *target_shape[1:])
    assert row_scores.shape == (10,)
    assert {rows.dtype, row_targets.dtype, row_scores.dtype} == {dtype}
    assert torch.equal(rows[:6], features) and torch.equal(row_targets[:6], targets)
    assert torch.equal(row_scores[:6], scores)
    anchors, partners = mixup._draw_pairs(scores, 0.5, 2.0, 4, seeded(6))
    first = literal_anchor(scores.tolist(), 0.5)
    for row, (i, j) in enumerate(zip(anchors.tolist(), partners.tolist(), strict=True), start=6):
        weight = first[i] / (first[i] + first[j])
        for mixed, original in ((rows, features), (row_targets, targets), (row_scores, scores)):
            torch.testing.assert_close(mixed[row], weight * original[i] + (1 - weight) * original[j])


@pytest.mark.parametrize(
    ("pairs", "batch_size", "count"),
    [
        (1, 6, 1), (5, 6, 5), (6, 6, 6), (99, 6, 6),
        (0.5, 6, 3), (0.99, 6, 6), (0.01, 6, 1), (0.3, 48, 14), (0.5, 2, 1), (1, 2, 1),
    ],
)  # fmt: skip
def test_pairs_is_a_count_or_a_fraction_of_the_batch(pairs, batch_size, count):
    mixed, _ = mix_identity(torch.linspace(3, 8, batch_size), pairs=pairs)
    assert len(mixed) == count
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(count))


@pytest.mark.parametrize(("pairs", "batch_size"), [(0, 6), (0.0, 6), (1, 1), (0.5, 1), (1, 0)])
def test_nothing_is_mixed_without_pairs_or_partners(pairs, batch_size):
    features, targets, scores = torch.ones(batch_size, 3), torch.ones(batch_size, 10), torch.ones(batch_size)
    mixed = mix(features, targets, scores, tau_1=0.5, tau_2=2.0, pairs=pairs, alpha=1.0, generator=seeded())
    assert mixed[0] is features and mixed[1] is targets and mixed[2] is scores


def test_two_rows_are_mixed_half_and_half():
    mixed, mixed_scores = mix_identity(torch.tensor([4.0, 7.0]))
    assert mixed.tolist() == [[0.5, 0.5]]
    assert mixed_scores.tolist() == [5.5]


def test_gradients_reach_both_rows_of_a_pair():
    features = torch.randn(6, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    settings = {"tau_1": 0.5, "tau_2": 2.0, "pairs": 1}
    scores = SCORES.double()
    rows, _, _ = mix(features, torch.ones(6, 1).double(), scores, **settings, generator=seeded(4))
    rows[6].sum().backward()
    anchors, partners = mixup._draw_pairs(scores, 0.5, 2.0, 1, seeded(4))
    weight = mixing_weights(scores, 0.5)[anchors, partners].item()
    assert features.grad is not None
    torch.testing.assert_close(features.grad[anchors[0]], torch.full((3,), weight, dtype=torch.float64))
    torch.testing.assert_close(features.grad[partners[0]], torch.full((3,), 1 - weight, dtype=torch.float64))
    assert features.grad.count_nonzero() == 6


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_draws_depend_only_on_the_generator(alpha):
    settings = {"pairs": 5, "alpha": alpha}
    torch.manual_seed(0)
    once, _ = mix_identity(SCORES, **settings, generator=seeded(7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again, _ = mix_identity(SCORES, **settings, generator=seeded(7))
    assert torch.equal(once, again)
    assert torch.equal(state, torch.get_rng_state())
    other, _ = mix_identity(SCORES, **settings, generator=seeded(8))
    assert not torch.equal(once, other)


def test_without_a_generator_torch_s_own_seed_decides():
    torch.manual_seed(3)
    once, _ = mix_identity(SCORES, pairs=5, alpha=1.0, generator=None)
    torch.manual_seed(3)
    again, _ = mix_identity(SCORES, pairs=5, alpha=1.0, generator=None)
    assert torch.equal(once, again)


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ({"alpha": 0.09}, r"alpha must be at least 0\.1 or None, not 0\.09"),
        ({"alpha": math.nan}, "alpha .* not nan"),
        ({"pairs": -1}, "pairs .* not -1"),
        ({"pairs": 1.5}, r"pairs .* not 1\.5"),
        ({"pairs": math.nan}, "pairs .* not nan"),
        ({"tau_1": 0.0}, r"tau_1 must be positive, not 0\.0"),
        ({"tau_2": -2.0}, r"tau_2 must be positive, not -2\.0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(setting, rule):
    with pytest.raises(ValueError, match=rule):
        mix_identity(SCORES, **setting)


@pytest.mark.parametrize(
    ("features", "targets", "scores"),
    [((5, 3), (6, 10), (6,)), ((6, 3), (5, 10), (6,)), ((6, 3), (6, 10), (6, 1))],
)
def test_rows_that_do_not_match_are_refused(features, targets, scores):
    with pytest.raises(ValueError, match="same number of rows"):
        mix(torch.ones(features), torch.ones(targets), torch.ones(scores), tau_1=0.5, tau_2=2.0)


# --- alpha


def kolmogorov_distance(samples, distribution):
    """Largest gap of the two CDFs; right also for values that were rounded to 0 or 1, unlike SciPy's."""
    values, counts = np.unique(np.maximum(samples, 1e-300), return_counts=True)
    return np.abs(np.cumsum(counts) / counts.sum() - distribution.cdf(values)).max()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 8.0])
@pytest.mark.parametrize("mean", [0.0, 1e-6, 1e-3, 0.1, 0.5, 0.8, 1 - 1e-6, 1.0])
def test_random_weights_are_beta_around_the_paper_s(alpha, mean):
    count = 20000
    weights = mixup._draw_weights(torch.full((count,), mean), alpha, seeded(11)).numpy()
    clamped = min(max(mean, 1e-6), 1 - 1e-6)
    expected = stats.beta(2 * alpha * clamped, 2 * alpha * (1 - clamped))
    assert weights.dtype == np.float64
    assert np.isfinite(weights).all() and weights.min() >= 0 and weights.max() <= 1
    assert kolmogorov_distance(weights, expected) < 1.95 / math.sqrt(count)  # p = 0.001
    assert abs(weights.mean() - clamped) < 4 * expected.std() / math.sqrt(count) + 1e-4


@pytest.mark.parametrize("concentration", [2e-7, 1e-3, 0.2, 1.0, 16.0])
def test_log_gamma_draws_follow_the_gamma_distribution(concentration):
    count = 20000
    draws = mixup._draw_log_gamma(torch.full((count,), concentration).double(), seeded(12)).numpy()
    assert np.isfinite(draws).all()
    if concentration < 0.1:  # variates like e^{-1,000,000}: P(log G ≤ t) → e^{ta} / Γ(a+1)
        uniform = np.exp(concentration * draws) / math.gamma(concentration + 1)
        assert stats.kstest(uniform.clip(0, 1), "uniform").statistic < 1.95 / math.sqrt(count) + concentration
    else:
        assert stats.kstest(np.exp(draws), stats.gamma(concentration).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.1, 1.0, 5.0])
def test_mix_draws_classic_weights_where_the_paper_has_one_half(alpha):
    scores = torch.tensor([4.0, 6.0]).double().repeat(1000)  # all as far from the mean: w = ½
    ones_at = (torch.arange(2000) % 2).double()
    rows, _, _ = mix(ones_at[:, None], ones_at, scores, tau_1=0.5, tau_2=1e-3, pairs=2000, alpha=alpha,
                     generator=seeded(13))  # fmt: skip
    anchors, partners = mixup._draw_pairs(scores, 0.5, 1e-3, 2000, seeded(13))
    different = ones_at[anchors] != ones_at[partners]  # only these rows show their weight
    weights = torch.where(ones_at[anchors] == 1, rows[2000:, 0], 1 - rows[2000:, 0])[different].numpy()
    assert len(weights) > 900
    assert kolmogorov_distance(weights, stats.beta(alpha, alpha)) < 1.95 / math.sqrt(len(weights))


def test_random_weights_stay_finite_at_the_smallest_alpha():
    scores = torch.tensor([5.0, 5.0, 5.0, 5.0, 10.0, 1.0])  # at this τ1 every w but the tails' is 0, 1 or ½
    for seed in range(200):
        mixed, mixed_scores = mix_identity(scores, tau_1=1e-3, alpha=0.1, pairs=6, generator=seeded(seed))
        assert mixed.isfinite().all() and mixed_scores.isfinite().all()
        torch.testing.assert_close(mixed.sum(dim=1), torch.ones(6))
