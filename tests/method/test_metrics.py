from __future__ import annotations

import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats

from elta_tune.method.metrics import DIRECTIONS, evaluate, tail_cuts

ALWAYS = {"srcc", "plcc", "accuracy", "mae", "rmse", "bmae", "gmean", "std_ratio"}
SEGMENTS = {f"{metric}_{segment}" for metric in ("mae", "bias", "n") for segment in ("low", "mid", "high")}
DISTANCES = {"emd_r1", "emd_r2"}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def random_split(count=400, seed=0):
    generator = np.random.default_rng(seed)
    true = generator.normal(5.4, 1.2, count).clip(1, 10).round(1)  # rounded: many ties
    return (0.5 * true + 2.5 + generator.normal(0, 0.5, count)).round(2), true


def random_distributions(count=6, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(10), size=(2, count))


def test_metrics_are_the_released_code_s(released_metrics):
    metrics = evaluate(released_metrics["predicted"], released_metrics["true"])
    expected = released_metrics["expected"]
    for key in ("plcc", "srcc", "mae", "accuracy"):
        assert metrics[key] == pytest.approx(expected[key], abs=1e-9)
    assert metrics["rmse"] ** 2 == pytest.approx(expected["mse"], abs=1e-9)


def test_correlations_are_scipy_s():
    predicted, true = random_split()
    metrics = evaluate(predicted, true)
    assert metrics["srcc"] == pytest.approx(stats.spearmanr(predicted, true).statistic, abs=1e-12)
    assert metrics["plcc"] == pytest.approx(stats.pearsonr(predicted, true).statistic, abs=1e-12)


def test_errors_follow_their_formulas():
    predicted, true = random_split()
    errors = [p - t for p, t in zip(predicted.tolist(), true.tolist(), strict=True)]
    metrics = evaluate(predicted, true, threshold=5.5)
    count = len(errors)
    product = math.prod((abs(error) + 1e-3) ** (1 / count) for error in errors)
    agree = [(p > 5.5) == (t > 5.5) for p, t in zip(predicted.tolist(), true.tolist(), strict=True)]
    assert metrics["mae"] == pytest.approx(sum(map(abs, errors)) / count)
    assert metrics["rmse"] == pytest.approx(math.sqrt(sum(error**2 for error in errors) / count))
    assert metrics["gmean"] == pytest.approx(product)
    assert metrics["accuracy"] == pytest.approx(sum(agree) / count)
    assert metrics["std_ratio"] == pytest.approx(np.std(predicted) / np.std(true))


def test_accuracy_counts_a_score_on_the_threshold_as_not_above():
    assert evaluate([5.0, 5.1, 5.0, 5.1], [5.0, 5.0, 6.0, 6.0])["accuracy"] == 0.5


def test_segments_include_their_cuts():
    true = [2.0, 3.0, 3.1, 5.0, 6.9, 7.0, 8.0]
    predicted = [3.0, 5.0, 3.1, 4.0, 6.9, 6.0, 6.0]
    metrics = evaluate(predicted, true, tail_cuts=(3.0, 7.0))
    segments = [[metrics[f"{key}_{name}"] for name in ("low", "mid", "high")] for key in ("n", "mae", "bias")]
    assert segments[0] == [2, 3, 2]
    assert segments[1] == pytest.approx([1.5, 1 / 3, 1.5])
    assert segments[2] == pytest.approx([1.5, -1 / 3, -1.5])


def test_equal_cuts_put_images_in_both_tails_and_none_between():
    metrics = evaluate([5.0, 6.0], [5.0, 5.0], tail_cuts=(5.0, 5.0))
    assert (metrics["n_low"], metrics["n_mid"], metrics["n_high"]) == (2, 0, 2)
    assert metrics["mae_low"] == metrics["mae_high"] == 0.5
    assert math.isnan(metrics["mae_mid"]) and math.isnan(metrics["bias_mid"])


def test_tail_cuts_are_the_20th_and_80th_percentile():
    assert tail_cuts(range(11)) == (2.0, 8.0)
    assert tail_cuts(torch.full((9,), 5.0)) == (5.0, 5.0)
    with pytest.raises(ValueError, match="at least one image"):
        tail_cuts([])


@pytest.mark.parametrize("scale", [(1.0, 10.0), (0.0, 1.0), (1.0, 5.0)])
def test_bmae_averages_the_bins_that_hold_enough_images(scale):
    low, high = scale
    predicted, true = (low + (values - 1) / 9 * (high - low) for values in random_split(seed=1))
    bins: dict[int, list[float]] = {}
    for p, t in zip(predicted, true, strict=True):
        index = min(max(k for k in range(18) if k == 0 or t >= low + k * (high - low) / 18), 17)
        bins.setdefault(index, []).append(abs(p - t))
    filled = [sum(errors) / len(errors) for errors in bins.values() if len(errors) >= 5]
    assert len(filled) < len(bins)
    assert evaluate(predicted, true, scale=scale)["bmae"] == pytest.approx(sum(filled) / len(filled))


def test_bmae_leaves_out_bins_under_five_images():
    true = [1.0] * 5 + [10.0] * 4
    predicted = [2.0] * 5 + [5.0] * 4
    assert evaluate(predicted, true)["bmae"] == 1.0
    assert evaluate([*predicted, 7.0], [*true, 10.0])["bmae"] == (1.0 + 4.6) / 2  # 10 itself is in a bin
    assert math.isnan(evaluate(predicted[4:], true[4:])["bmae"])


def test_bmae_bins_are_closed_below():
    true, predicted = [1.49] * 5 + [1.5] * 5, [1.49] * 5 + [2.5] * 5
    assert evaluate(predicted, true)["bmae"] == 0.5
    assert evaluate([1.4] * 5 + [2.5] * 5, [1.4] * 5 + [1.5] * 5)["bmae"] == 0.5


def test_scores_beyond_the_scale_count_in_its_outermost_bins():
    true = [0.5, 0.5, 1.0, 1.2, 1.2] + [9.8, 10.0, 10.5, 11.0, 11.0]
    assert evaluate([value + 1 for value in true], true)["bmae"] == pytest.approx(1.0)


def test_distances_of_distributions_follow_their_formula():
    first, second = random_distributions()
    totals = {1: 0.0, 2: 0.0}
    for p_row, q_row in zip(first, second, strict=True):
        gaps = [abs(sum(p_row[: k + 1]) - sum(q_row[: k + 1])) for k in range(10)]
        for power in totals:
            totals[power] += (sum(gap**power for gap in gaps) / 10) ** (1 / power) / 6
    metrics = evaluate(range(6), range(6), predicted_distributions=first, true_distributions=second)
    assert metrics["emd_r1"] == pytest.approx(totals[1])
    assert metrics["emd_r2"] == pytest.approx(totals[2])


def test_keys_are_those_that_the_arguments_allow():
    predicted, true = random_split(6)
    first, second = random_distributions()
    assert evaluate(predicted, true).keys() == ALWAYS
    assert evaluate(predicted, true, tail_cuts=(4.0, 6.0)).keys() == ALWAYS | SEGMENTS
    assert evaluate(predicted, true, predicted_distributions=first).keys() == ALWAYS
    distributions = {"predicted_distributions": first, "true_distributions": second}
    both = evaluate(predicted, true, tail_cuts=(4.0, 6.0), **distributions)
    assert both.keys() == ALWAYS | SEGMENTS | DISTANCES
    assert all(type(value) in (float, int) for value in both.values())


def test_directions_point_to_better_values():
    predicted, true = random_split()
    metrics = evaluate(true, true, tail_cuts=(4.0, 6.0)), evaluate(predicted, true, tail_cuts=(4.0, 6.0))
    assert DIRECTIONS.keys() - DISTANCES < metrics[0].keys()
    for key in DIRECTIONS.keys() - DISTANCES:
        perfect, worse = (values[key] for values in metrics)
        assert perfect > worse if DIRECTIONS[key] == "maximize" else perfect < worse
    assert set(DIRECTIONS.values()) == {"maximize", "minimize"}
    assert not [key for key in DIRECTIONS if key.startswith(("bias_", "n_", "std_"))]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("share", ["one", "all"])
def test_predictions_that_are_not_finite_make_metrics_nan(bad, share):
    predicted, true = random_split(50)
    predicted[0 if share == "one" else slice(None)] = bad
    first, second = random_distributions(50)
    first[0] = bad
    true[0] = 2.0
    distributions = {"predicted_distributions": first, "true_distributions": second}
    metrics = evaluate(predicted, true, tail_cuts=(4.0, 6.0), **distributions)
    unaffected = SEGMENTS - {"mae_low", "bias_low"} if share == "one" else {"n_low", "n_mid", "n_high"}
    assert {key for key, value in metrics.items() if not math.isnan(value)} == unaffected


def test_scores_that_are_nan_make_metrics_nan():
    metrics = evaluate([5.0] * 4 + [6.0] * 4, [4.0] * 3 + [math.nan] + [6.0] * 4, tail_cuts=(4.0, 6.0))
    assert all(math.isnan(metrics[key]) for key in ALWAYS)
    assert (metrics["n_low"], metrics["n_mid"], metrics["n_high"]) == (3, 0, 4)


@pytest.mark.parametrize("constant", [5.0, 0.1, 0.0, np.float32(5.4373), 5.0 + 1e-14 * np.arange(30)])
def test_constant_predictions_have_no_correlation(constant):
    _, true = random_split(30)
    metrics = evaluate(np.full(30, constant), true)
    assert math.isnan(metrics["srcc"]) and math.isnan(metrics["plcc"])
    assert metrics["std_ratio"] == pytest.approx(0, abs=1e-9)
    assert metrics["mae"] == pytest.approx(np.abs(true - constant).mean())


def test_constant_truth_has_neither_correlation_nor_spread():
    predicted, _ = random_split(30)
    metrics = evaluate(predicted, [0.1] * 30)
    assert all(math.isnan(metrics[key]) for key in ("srcc", "plcc", "std_ratio"))


def test_one_and_two_images_are_measured():
    alone = evaluate([5.0], [6.0], tail_cuts=(4.0, 5.0))
    assert alone["mae"] == alone["mae_high"] == 1.0
    assert math.isnan(alone["srcc"])
    two = evaluate([5.0, 4.0], [6.0, 7.0])
    assert two["srcc"] == pytest.approx(-1) and two["plcc"] == pytest.approx(-1)


def test_float32_and_torch_inputs_are_measured_in_float64():
    predicted, true = random_split()
    metrics = evaluate(torch.tensor(predicted), torch.tensor(true))
    assert metrics == evaluate(predicted, true)
    single = evaluate(predicted.astype(np.float32), true.astype(np.float32))
    assert single["srcc"] == pytest.approx(metrics["srcc"], abs=1e-6)


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([], [], "at least one image"),
        ([1.0, 2.0], [1.0], r"same shape, not \(2,\) and \(1,\)"),
        ([[1.0], [2.0]], [1.0, 2.0], r"predicted must have the shape \(N,\)"),
    ],
)
def test_scores_that_do_not_match_are_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predicted, true)


@pytest.mark.parametrize(("predicted", "true"), [((6, 10), (6, 9)), ((5, 10), (5, 10)), ((6,), (6,))])
def test_distributions_that_do_not_match_are_refused(predicted, true):
    arguments = {"predicted_distributions": np.ones(predicted), "true_distributions": np.ones(true)}
    with pytest.raises(ValueError, match="distributions must have the"):
        evaluate(range(6), range(6), **arguments)


def test_directions_are_had_without_torch_or_scipy():
    code = "import sys, elta_tune.method.metrics; assert not {'torch', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mirrored_scale_mirrors_tails_and_accuracy():
    """Scores where low is good, and 6 minus them where high is good, are the same opinions."""
    random = np.random.default_rng(3)
    true = random.integers(10, 51, 400) / 10
    predicted = (true + random.normal(0, 0.6, 400)).round(2).clip(1, 5)
    own = evaluate(predicted, true, threshold=2.5, scale=(1, 5), tail_cuts=(2.1, 4.2), higher_is_better=False)
    mirrored = evaluate(6 - predicted, 6 - true, threshold=3.5, scale=(1, 5), tail_cuts=(1.8, 3.9))
    assert own.keys() == mirrored.keys()
    assert own["n_low"] != own["n_high"]
    assert own["srcc"] > 0.5
    for name in own.keys() - {"bmae"}:  # whose bins include their lower end
        sign = -1 if name.startswith("bias") else 1
        assert own[name] == pytest.approx(sign * mirrored[name], abs=1e-9), name
