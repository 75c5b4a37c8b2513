"""Sharpening searched on predictions that exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from elta_tune.config import TrialConfig
from elta_tune.documents import find_document
from elta_tune.errors import ConfigError, DataError
from elta_tune.results.predictions import read_predictions
from elta_tune.results.sharpen import Sharpened, sharpen_predictions, spread
from elta_tune.space import SearchSpace, load_space

BINS = np.arange(1, 11)


def write_predictions(path: Path, count: int, *, first: int = 0, logits: bool = True, truth: bool = True) -> Path:
    """What a fair model says of images: its confidence grows with the distance from the mean, its error does not."""
    random = np.random.default_rng([count, first])
    true = random.normal(5.4, 1.2, count).clip(1, 10)
    peak = (true + random.normal(0, 0.6, count)).clip(1, 10)
    sharp = 0.25 + 0.5 * np.abs(peak - 5.4)[:, None]
    values = -sharp * (BINS - peak[:, None]) ** 2 + random.normal(0, 0.2, (count, 10))
    shares = softmax(values, axis=1)
    columns: dict[str, Any] = {"image_id": [f"{first + number:06d}" for number in range(count)]}
    columns |= {"gt": true} if truth else {}
    columns |= {"score": shares @ BINS}
    columns |= {f"score{k + 1}": (values if logits else shares)[:, k - 1] for k in BINS}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture
def recipe() -> TrialConfig:
    """Where sharpening acts."""
    return TrialConfig().replace({"self_training.rounds": 1})


@pytest.fixture
def space() -> SearchSpace:
    """Temperature and threshold of the space that ships, and which softmax is taught."""
    parameters = {
        "sharpening.temperature": {"type": "float", "low": 0.1, "high": 4.0},
        "sharpening.threshold": {"type": "float", "low": 0.2, "high": 0.95},
        "sharpening.target": {"type": "categorical", "choices": ["raw", "sharpened"]},
        "optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3},
    }
    return SearchSpace.model_validate({"parameters": parameters})


def written_out(file: Path, params: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows that are kept, their sharpened shares and their confidence, by NumPy."""
    table = pd.read_csv(file)
    logits = table.filter(regex=r"^score\d").to_numpy()
    scores = table["score"].to_numpy()
    factors = np.exp(params["sharpening.temperature"] * np.abs(scores.mean() - scores))
    sharpened = softmax(logits * factors[:, None], axis=1)
    kept = np.flatnonzero(sharpened.max(axis=1) > params["sharpening.threshold"])
    return kept, sharpened[kept], sharpened[kept].max(axis=1)


def search(file: Path, holdout: Path | float, space: SearchSpace, recipe: TrialConfig, **options: Any) -> Sharpened:
    return sharpen_predictions(file, holdout, space, recipe, **{"trials": 60, **options})


def test_the_choice_is_the_best_of_the_hold_out_and_labels_the_pool(
    tmp_path: Path, space: SearchSpace, recipe: TrialConfig
) -> None:
    holdout = write_predictions(tmp_path / "val.csv", 600)
    pool = write_predictions(tmp_path / "logits.csv", 800, first=1000, truth=False)
    found = search(pool, holdout, space, recipe)
    params = found.best.params
    assert set(params) == {"sharpening.temperature", "sharpening.threshold", "sharpening.target"}

    kept, sharpened, _ = written_out(holdout, params)
    table = pd.read_csv(holdout)
    truth = table["gt"].to_numpy()
    raw = softmax(table.filter(regex=r"^score\d").to_numpy(), axis=1)[kept]
    labels = (raw if params["sharpening.target"] == "raw" else sharpened) @ BINS
    errors, true = np.abs(labels - truth[kept]), truth[kept]
    low, high = np.percentile(truth, [20, 80])
    parts = [errors[true <= low], errors[(true > low) & (true < high)], errors[true >= high]]
    assert found.best.selected == len(kept)
    assert found.best.value == pytest.approx(np.mean([part.mean() for part in parts if len(part)]), rel=1e-4)
    assert found.recipe is None or found.best.value <= found.recipe.value

    kept, sharpened, confidence = written_out(pool, params)
    selection = found.labels.selection
    assert list(selection.ids) == [f"{1000 + row:06d}" for row in kept]
    np.testing.assert_allclose(selection.sharpened.numpy(), sharpened, atol=1e-4)
    np.testing.assert_allclose(selection.sharpened.amax(dim=1).numpy(), confidence, atol=1e-4)
    assert found.labels.diagnosis is None
    assert sum(found.labels.spread.values()) == len(kept)
    assert sum(found.labels.pool_spread.values()) == 800


def test_the_pools_own_scores_do_not_move_the_choice(tmp_path: Path, space: SearchSpace, recipe: TrialConfig) -> None:
    holdout = write_predictions(tmp_path / "val.csv", 300)
    pool = write_predictions(tmp_path / "logits.csv", 300, first=1000)
    before = search(pool, holdout, space, recipe)
    table = pd.read_csv(pool, dtype={"image_id": str})
    table["gt"] = 10 - table["gt"]
    table.to_csv(pool, index=False)
    after = search(pool, holdout, space, recipe)
    assert after.best == before.best
    assert list(after.labels.selection.ids) == list(before.labels.selection.ids)
    assert before.labels.diagnosis is not None
    assert after.labels.diagnosis is not None
    assert before.labels.diagnosis["srcc"] > 0.5 > -0.5 > after.labels.diagnosis["srcc"]


def test_without_another_file_a_share_of_the_images_is_held_out(
    tmp_path: Path, space: SearchSpace, recipe: TrialConfig
) -> None:
    file = write_predictions(tmp_path / "logits.csv", 400)
    found = search(file, 0.25, space, recipe)
    assert found.best.images == 100
    assert found.labels.selection.pool_size == 300
    again = pd.read_csv(file, dtype={"image_id": str}).sample(frac=1, random_state=1)
    again.to_csv(file, index=False)
    shuffled = search(file, 0.25, space, recipe)
    assert shuffled.best.value == pytest.approx(found.best.value)
    assert set(shuffled.labels.selection.ids) == set(found.labels.selection.ids)


def test_shares_are_sharpened_like_the_logits_they_come_from(
    tmp_path: Path, space: SearchSpace, recipe: TrialConfig
) -> None:
    by_logits = search(write_predictions(tmp_path / "logits.csv", 300), 0.5, space, recipe)
    by_shares = search(write_predictions(tmp_path / "test_result.csv", 300, logits=False), 0.5, space, recipe)
    assert by_shares.best.params == by_logits.best.params
    assert list(by_shares.labels.selection.ids) == list(by_logits.labels.selection.ids)


def test_a_choice_that_leaves_the_tails_out_does_not_count(
    tmp_path: Path, space: SearchSpace, recipe: TrialConfig
) -> None:
    file = write_predictions(tmp_path / "logits.csv", 300)
    table = pd.read_csv(file, dtype={"image_id": str})
    flat = np.abs(table["gt"] - table["gt"].mean()) > 1.0  # the model is sure of what is average alone
    table.loc[flat, [f"score{k + 1}" for k in BINS]] = 0.0
    table.to_csv(file, index=False)
    with pytest.raises(DataError, match="in both tails"):
        search(file, 0.5, space, recipe)


def test_what_can_not_be_searched_is_refused(tmp_path: Path, space: SearchSpace, recipe: TrialConfig) -> None:
    pool = write_predictions(tmp_path / "logits.csv", 60, truth=False)
    with pytest.raises(DataError, match="no column gt"):
        search(pool, 0.5, space, recipe)
    with pytest.raises(DataError, match="60 images of the pool are in the hold-out too"):
        search(pool, write_predictions(tmp_path / "val.csv", 60), space, recipe)
    with pytest.raises(ConfigError, match="--metric emd_r2"):
        search(write_predictions(tmp_path / "l.csv", 60), 0.5, space, recipe, metric="emd_r2")
    only = SearchSpace.model_validate({"parameters": {"optim.lr": {"type": "float", "low": 1e-5, "high": 1e-3}}})
    with pytest.raises(ConfigError, match="varies no field of sharpening"):
        search(write_predictions(tmp_path / "l.csv", 60), 0.5, only, recipe)
    scores = tmp_path / "scores.csv"
    scores.write_text("image_id,gt,score\n" + "".join(f"{n},{n % 9 + 1},{n % 9 + 1}\n" for n in range(40)))
    with pytest.raises(DataError, match="nothing to sharpen"):
        search(scores, 0.5, space, recipe)


def test_tails_include_their_bounds() -> None:
    assert spread(np.array([1.0, 2.0, 2.5, 3.0, 4.0, 4.5]), (2.0, 4.0)) == {"low": 2, "mid": 2, "high": 2}


def test_the_command_writes_what_self_training_would_train_on(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_predictions(tmp_path / "logits.csv", 300)
    done = command("sharpen", "logits.csv", "--trials", "40", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    table = pd.read_csv(tmp_path / "pseudo_labels.csv", dtype={"image_id": str})
    assert len(table) == told["pool"]["selected"] == sum(told["pool"]["spread"].values())
    assert told["pool"]["diagnosis"]["mae"] > 0
    assert list(table.columns[:4]) == ["image_id", "score", "confidence", "sharpened_1"]
    assert (table["confidence"] > told["best"]["params"]["sharpening.threshold"]).all()
    np.testing.assert_allclose(table.filter(regex="^raw_").sum(axis=1), 1, atol=1e-5)
    refused = command("sharpen", "logits.csv")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    plain = command("sharpen", "logits.csv", "--trials", "40", "--force")
    assert f"{told['pool']['selected']} of 150 images are pseudo-labelled" in plain.stdout


def test_the_space_that_ships_varies_sharpening(recipe: TrialConfig, tmp_path: Path) -> None:
    demo = TrialConfig().replace({"self_training.rounds": 1, "simloss.weight": 1.0, "optim.lr": 1e-4})
    shipped = load_space(find_document("default.yaml", "search_spaces"), demo)
    found = search(write_predictions(tmp_path / "logits.csv", 200), 0.5, shipped, recipe)
    assert set(found.best.params) == {"sharpening.temperature", "sharpening.threshold"}
    assert read_predictions(tmp_path / "logits.csv").logits is not None
