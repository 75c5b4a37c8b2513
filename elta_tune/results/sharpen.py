"""Sharpening without training: temperature and threshold searched on predictions that exist (docs/method.md §4).

They are judged by pseudo-labels of images whose scores are known, the hold-out, and then applied to a pool. The pool's
own scores, if it has any, are used only afterwards, to measure its pseudo-labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elta_tune.config import TrialConfig
from elta_tune.data.splits import hash_ranks
from elta_tune.documents import read_document
from elta_tune.errors import ConfigError, DataError
from elta_tune.method import metrics
from elta_tune.method.scores import RatingScale
from elta_tune.results.evaluate import yardstick_of_file
from elta_tune.results.predictions import PredictionFile, read_predictions
from elta_tune.space.check import check_space
from elta_tune.space.space import SearchSpace
from elta_tune.training.predict import Predictions
from elta_tune.training.self_training import select_from
from elta_tune.training.state import Selection

SECTION = "sharpening."
"""What the fields of a recipe that are searched begin with."""
SMALLEST_SHARE = 0.1
"""Of the hold-out's images in either tail, that a choice has to select: pseudo-labels are for the tails."""
BALANCED = "balanced"
"""The mean error of pseudo-labels in the low tail, between the tails and in the high tail, averaged over the three: so
the few of the tails count as much as the many between."""


@dataclass(frozen=True)
class Choice:
    """A temperature and a threshold, and what they made of the hold-out.

    `metrics` compare the pseudo-labels of the selected images with the truth; `value` is the one that is searched.
    """

    params: dict[str, Any]
    value: float
    selected: int
    images: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class PseudoLabels:
    """What a choice selects of a pool.

    `spread` and `pool_spread` count the selected images and all of them by where their predicted score is: in the low
    tail, between, in the high tail. `diagnosis` has the metrics of the pseudo-labels if the pool has scores after all.
    """

    selection: Selection
    spread: dict[str, int]
    pool_spread: dict[str, int]
    diagnosis: dict[str, float] | None


def hold_out(predictions: Predictions, share: float, seed: int) -> tuple[Predictions, Predictions]:
    """Two parts of labelled predictions: the hold-out, and the pool. Where an image goes depends on its id and the
    seed alone.

    Raises:
        DataError: one of them would be empty.
    """
    order = np.argsort(hash_ranks(predictions.ids, seed), kind="stable")
    count = round(share * len(order))
    if not 0 < count < len(order):
        raise DataError(f"a hold-out of {share:g} of {len(order)} images leaves a part empty")
    return _rows(predictions, np.sort(order[:count])), _rows(predictions, np.sort(order[count:]))


def _rows(predictions: Predictions, rows: NDArray[np.int64]) -> Predictions:
    return Predictions(
        predictions.ids[rows],
        None if predictions.truth is None else predictions.truth[rows],
        predictions.scores[rows],
        None if predictions.distributions is None else predictions.distributions[rows],
        None if predictions.logits is None else predictions.logits[torch.from_numpy(rows)],
    )


def load_sharpening(path: Path, recipe: TrialConfig) -> SearchSpace:
    """What of a space is about sharpening; the rest need not fit the recipe.

    Raises:
        ConfigError: nothing is, or a field of it is wrong.
    """
    document = read_document(path)
    given = document.content.get("parameters")
    fields = {name: body for name, body in given.items() if name.startswith(SECTION)} if isinstance(given, dict) else {}
    if not fields:
        raise ConfigError(f"{path}: parameters: varies no field of sharpening", "search_spaces/default.yaml does")
    return check_space(replace(document, content={"parameters": fields}, texts={}), recipe)


def search_sharpening(
    holdout: Predictions,
    space: SearchSpace,
    recipe: TrialConfig,
    yardstick: RatingScale,
    *,
    metric: str = BALANCED,
    trials: int = 200,
) -> list[Choice]:
    """Tries temperatures and thresholds on predictions with known true scores.

    The first one is the recipe's (the paper's, by default). Only choices count that select some images of both tails.

    Args:
        holdout: with `truth` and `logits`.
        space: of fields of sharpening.
        metric: of the selected images' pseudo-labels: `balanced`, or one of docs/method.md §7.

    Returns:
        The choices, the best first.

    Raises:
        ConfigError: the metric has no better side, or can't be measured here.
        DataError: nothing that was tried selects enough of both tails.
    """
    import optuna

    if metric != BALANCED and (metric not in metrics.DIRECTIONS or metric.startswith("emd")):
        raise ConfigError(f"`metric={metric}`: should be balanced, or one that compares scores: bmae, mae, srcc, …")
    found = dict[tuple[Any, ...], Choice]()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    is_error = metrics.DIRECTIONS.get(metric, "minimize") == "minimize"
    try:
        study = optuna.create_study(
            direction="minimize" if is_error else "maximize", sampler=optuna.samplers.TPESampler(seed=recipe.seed)
        )
        study.enqueue_trial({name: recipe.get(name) for name in space.parameters})
        for _ in range(trials):
            trial = study.ask()
            params = space.suggest(trial, recipe)
            choice = measure_choice(holdout, recipe.replace(params), yardstick, metric)
            if choice is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                found[tuple(params.values())] = replace(choice, params=params)
                study.tell(trial, choice.value)
    finally:
        optuna.logging.set_verbosity(verbosity)
    if not found:
        raise DataError(
            f"none of {trials} choices selects {SMALLEST_SHARE:.0%} of the hold-out's images in both tails",
            "widen the space: lower thresholds, higher temperatures",
        )
    return sorted(found.values(), key=lambda choice: choice.value if is_error else -choice.value)


def measure_choice(holdout: Predictions, config: TrialConfig, yardstick: RatingScale, metric: str) -> Choice | None:
    """What a temperature and a threshold make of the hold-out, or None if they select too little of its tails."""
    assert holdout.truth is not None
    selection = select_from(holdout, config.sharpening, yardstick.scale, round=1)
    rows = selection.rows.numpy()
    cuts = yardstick.tail_cuts or metrics.tail_cuts(holdout.truth)
    for tail in (holdout.truth <= cuts[0], holdout.truth >= cuts[1]):
        if tail[rows].sum() < max(1, math.ceil(SMALLEST_SHARE * tail.sum())):
            return None
    measured = _measured(selection, holdout.truth[rows], config, replace(yardstick, tail_cuts=cuts))
    value = _balanced(measured) if metric == BALANCED else measured[metric]
    if math.isnan(value):
        return None
    params = {name: config.get(name) for name in ("sharpening.temperature", "sharpening.threshold")}
    return Choice(params, value, len(rows), len(holdout.ids), measured)


def _balanced(measured: Mapping[str, float]) -> float:
    errors = [measured[f"mae_{part}"] for part in ("low", "mid", "high") if measured[f"n_{part}"]]
    return sum(errors) / len(errors)


def label_pool(pool: Predictions, config: TrialConfig, yardstick: RatingScale) -> PseudoLabels:
    """Selects from a pool; its own scores are compared afterwards.

    Args:
        yardstick: with tails.
    """
    assert yardstick.tail_cuts is not None
    selection = select_from(pool, config.sharpening, yardstick.scale, round=1)
    truth = None if pool.truth is None or not len(selection.rows) else pool.truth[selection.rows.numpy()]
    return PseudoLabels(
        selection,
        spread(selection.scores, yardstick.tail_cuts, yardstick.higher_is_better),
        spread(pool.scores, yardstick.tail_cuts, yardstick.higher_is_better),
        None if truth is None else _measured(selection, truth, config, yardstick),
    )


def spread(
    scores: NDArray[np.float64], tail_cuts: tuple[float, float], higher_is_better: bool = True
) -> dict[str, int]:
    """How many scores are in the low tail, between the tails, and in the high one."""
    segments = metrics.segments(scores, tail_cuts, higher_is_better)
    return {name: int(members.sum()) for name, members in segments.items()}


def _measured(
    selection: Selection, truth: NDArray[np.float64], config: TrialConfig, yardstick: RatingScale
) -> dict[str, float]:
    """The metrics of pseudo-labels: what would be trained on, raw or sharpened."""
    labels = selection.raw if config.sharpening.target == "raw" else selection.sharpened
    return metrics.evaluate(
        _mean(labels, yardstick.scale),
        truth,
        threshold=yardstick.threshold,
        scale=yardstick.scale,
        tail_cuts=yardstick.tail_cuts,
        higher_is_better=yardstick.higher_is_better,
    )


def _mean(distributions: Tensor, scale: tuple[float, float]) -> NDArray[np.float64]:
    """The mean rating (N,) of distributions (N, K) over bins from the lowest to the highest."""
    bins = np.linspace(*scale, distributions.shape[1])
    return np.asarray(distributions.double().numpy() @ bins)


@dataclass(frozen=True)
class Sharpened:
    """The best choice, what the recipe's own makes of the hold-out (None: too little of its tails), and the labels.

    `left_out` images of either file have no score; `yardstick` is what the choices were measured by.
    """

    best: Choice
    recipe: Choice | None
    labels: PseudoLabels
    yardstick: RatingScale
    left_out: int


def sharpen_predictions(
    file: Path,
    holdout: Path | float,
    space: SearchSpace,
    recipe: TrialConfig,
    *,
    metric: str = BALANCED,
    trials: int = 200,
) -> Sharpened:
    """Searches temperature and threshold on a hold-out, and labels the images of a file of predictions with them.

    Args:
        file: predictions with logits or shares; its `gt`, if it has one, is not read for the choice.
        holdout: another file of predictions with `gt`; or the share of this one's images whose `gt` is, which depend on
            the recipe's seed.
        space: of fields of sharpening.
        recipe: scale and tails are those of its `data`, if it names a training file; else what the hold-out's file
            tells (see `yardstick_of_file`).

    Raises:
        DataError: a file is wrong, has no `gt` to judge by or nothing to sharpen, or images stand in both.
        ConfigError: as `search_sharpening`.
    """
    read = _sharpenable(file)
    judge = _sharpenable(holdout) if isinstance(holdout, Path) else read
    judge.require_truth("name a file that has it: `holdout=FILE`")
    yardstick = yardstick_of_file(judge, recipe.data)
    if isinstance(holdout, Path):
        known, pool, left_out = judge.predictions, read.predictions, judge.left_out + read.left_out
        _refuse_strangers(judge, read)
    else:
        (known, pool), left_out = hold_out(read.predictions, holdout, recipe.seed), read.left_out
    assert known.truth is not None
    yardstick = replace(yardstick, tail_cuts=yardstick.tail_cuts or metrics.tail_cuts(known.truth))
    best, *_ = search_sharpening(known, space, recipe, yardstick, metric=metric, trials=trials)
    own = measure_choice(known, recipe, yardstick, metric)
    labels = label_pool(pool, recipe.replace(best.params), yardstick)
    return Sharpened(best, own, labels, yardstick, left_out)


def _sharpenable(path: Path) -> PredictionFile:
    read = read_predictions(path)
    if not read.bins:
        raise DataError(
            f"{path}: these predictions have scores only: there is nothing to sharpen", "they need score2, score3, …"
        )
    return read


def _refuse_strangers(holdout: PredictionFile, pool: PredictionFile) -> None:
    """Refuses a pool that another model predicted than the hold-out, or that shares images with it."""
    if holdout.bins != pool.bins:
        raise DataError(f"{pool.path}: has shares of {pool.bins} ratings, but {holdout.path} of {holdout.bins}")
    if shared := sorted({*holdout.predictions.ids} & {*pool.predictions.ids}):
        raise DataError(f"{len(shared)} images of the pool are in the hold-out too, the first {shared[0]!r}")
