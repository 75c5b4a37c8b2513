"""Searching the sharpening on existing predictions."""

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
from elta_tune.results.sharpen import Sharpened, load_sharpening, sharpen_predictions, spread
from elta_tune.space.space import SearchSpace

BINS = np.arange(1, 11)


def write_predictions(
    path: Path,
    count: int,
    *,
    first: int = 0,
    logits: bool = True,
    truth: bool = True,
    scale: tuple[float, float] = (1, 10),
    bins: int = 10,
) -> Path:
    """What a fair model says of images: its confidence grows with the distance from the mean, its error does not."""
    random = np.random.default_rng([count, first])
    true = random.normal(5.4, 1.2, count).clip(1, 10)
    peak = (true + random.normal(0, 0.6, count)).clip(1, 10)
    sharp = 0.25 + 0.5 * np.abs(peak - 5.4)[:, None]
    values = -sharp * (np.linspace(1, 10, bins) - peak[:, None]) ** 2 + random.normal(0, 0.2, (count, bins))
    shares = softmax(values, axis=1)
    low, high = scale
    columns: dict[str, Any] = {"image_id": [f"{first + number:06d}" for number in range(count)]}
    columns |= {"gt": low + (high - low) * (true - 1) / 9} if truth else {}
    columns |= {"score": shares @ np.linspace(low, high, bins)}
    columns |= {f"score{k + 2}": (values if logits else shares)[:, k] for k in range(bins)}
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


def test_best_setting_on_the_hold_out_labels_the_pool(tmp_path: Path, space: SearchSpace, recipe: TrialConfig) -> None:
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


def test_input_that_cannot_be_searched_is_refused(tmp_path: Path, space: SearchSpace, recipe: TrialConfig) -> None:
    pool = write_predictions(tmp_path / "logits.csv", 60, truth=False)
    with pytest.raises(DataError, match="no column gt"):
        search(pool, 0.5, space, recipe)
    with pytest.raises(DataError, match="60 images of the pool are in the hold-out too"):
        search(pool, write_predictions(tmp_path / "val.csv", 60), space, recipe)
    with pytest.raises(ConfigError, match="`metric=emd_r2`"):
        search(write_predictions(tmp_path / "l.csv", 60), 0.5, space, recipe, metric="emd_r2")
    five = write_predictions(tmp_path / "five.csv", 60, first=1000, scale=(1, 5), bins=5)
    with pytest.raises(DataError, match=r"logits\.csv: has shares of 10 ratings, but .*five\.csv of 5"):
        search(pool, five, space, recipe)
    only = tmp_path / "only.yaml"
    only.write_text("parameters: {optim.lr: {type: float, low: 1e-5, high: 1e-3}}\n")
    with pytest.raises(ConfigError, match="varies no field of sharpening"):
        load_sharpening(only, recipe)
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
    answer = json.loads(done.stdout)
    table = pd.read_csv(tmp_path / "pseudo_labels.csv", dtype={"image_id": str})
    assert len(table) == answer["pool"]["selected"] == sum(answer["pool"]["spread"].values())
    assert answer["pool"]["diagnosis"]["mae"] > 0
    assert list(table.columns[:4]) == ["image_id", "score", "confidence", "sharpened_1"]
    assert (table["confidence"] > answer["best"]["params"]["sharpening.threshold"]).all()
    np.testing.assert_allclose(table.filter(regex="^raw_").sum(axis=1), 1, atol=1e-5)
    refused = command("sharpen", "logits.csv")
    assert (refused.returncode, "--force" in refused.stderr) == (2, True)
    plain = command("sharpen", "logits.csv", "--trials", "40", "--force")
    assert f"{answer['pool']['selected']} of 150 images are pseudo-labelled" in plain.stdout


def test_the_space_that_ships_varies_sharpening(recipe: TrialConfig, tmp_path: Path) -> None:
    shipped = load_sharpening(find_document("default.yaml", "search_spaces"), recipe)
    found = search(write_predictions(tmp_path / "logits.csv", 200), 0.5, shipped, recipe)
    assert set(found.best.params) == {"sharpening.temperature", "sharpening.threshold"}
    assert read_predictions(tmp_path / "logits.csv").predictions.logits is not None


def test_only_the_sharpening_part_of_a_space_must_fit(
    recipe: TrialConfig, tmp_path: Path, command: Callable[..., Any]
) -> None:
    write_predictions(tmp_path / "logits.csv", 200)
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "demo.yaml").write_text("a recipe of the user's own that can't be read")
    file = tmp_path / "mine.yaml"
    file.write_text(
        "sampler: {name: grid}\nparameters:\n"
        "  optim.lr: {type: float, low: 1e-6, high: 1e-4}\n"  # without the 5e-4 of the recipe
        "  self_training.rounds: {type: int, low: 0, high: 2}\n"
        "  sharpening.threshold: {type: float, low: 0.1, high: 0.9, when: self_training.rounds > 0}\n"
        "enqueue: [{optim.lr: 1e-5, sharpening.threshold: 0.5}]\n"
    )
    done = command("sharpen", "logits.csv", "--space", "mine.yaml", "--trials", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["best"]["params"]) == {"sharpening.threshold"}
    file.write_text("parameters:\n  sharpening.threshold: {type: float, low: 0.1, high: 2}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:2: parameters\.sharpening\.threshold: .*less than 1"):
        load_sharpening(file, recipe)


def test_a_pool_is_judged_by_the_hold_outs_own_scale_and_tails(
    recipe: TrialConfig, space: SearchSpace, tmp_path: Path
) -> None:
    (tmp_path / "trial").mkdir()
    holdout = write_predictions(tmp_path / "trial" / "predictions.csv", 400, scale=(0, 100), bins=5)
    model = {"scale": [0, 100], "threshold": 50, "tail_cuts": [33, 67]}
    (tmp_path / "trial" / "result.json").write_text(json.dumps({"model": model}))
    pool = write_predictions(tmp_path / "logits.csv", 400, first=1000, scale=(0, 100), bins=5)
    found = search(pool, holdout, space, recipe)
    scores = pd.read_csv(pool)["score"].to_numpy()
    low, high = int((scores <= 33).sum()), int((scores >= 67).sum())
    assert found.labels.pool_spread == {"low": low, "mid": 400 - low - high, "high": high}
    assert found.best.metrics["mae"] < 20
    assert found.labels.diagnosis is not None
    assert found.labels.diagnosis["mae"] < 20
    (tmp_path / "trial" / "result.json").unlink()
    with pytest.raises(DataError, match=r"predictions\.csv:2: gt: .* is outside the scale 1…5; .*data\.scale"):
        search(pool, holdout, space, recipe)
    searched = search(pool, holdout, space, recipe.replace({"data.scale": [0, 100]}))
    assert searched.best.metrics["mae"] < 20


def test_images_that_could_not_be_read_are_left_out_and_counted(
    recipe: TrialConfig, space: SearchSpace, tmp_path: Path
) -> None:
    whole = write_predictions(tmp_path / "whole.csv", 300)
    table = pd.read_csv(whole, dtype={"image_id": str}).assign(reason="")
    broken = {"image_id": ["a.jpg", "b.jpg"], "reason": ["it is not an image", "there is no such file"]}
    file = tmp_path / "logits.csv"
    pd.concat([table[:7], pd.DataFrame(broken), table[7:]]).assign(gt=lambda rows: rows["gt"].fillna(5)).to_csv(
        file, index=False
    )
    found, expected = search(file, 0.5, space, recipe), search(whole, 0.5, space, recipe)
    assert (found.left_out, expected.left_out) == (2, 0)
    assert found.best == expected.best
    assert list(found.labels.selection.ids) == list(expected.labels.selection.ids)
    lines = file.read_text().splitlines()
    lines[12] = lines[12].replace(lines[12].split(",")[2], "many", 1)
    file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"logits\.csv:13: score: 'many' is not a number"):
        read_predictions(file)


def test_another_seed_holds_out_other_images(recipe: TrialConfig, space: SearchSpace, tmp_path: Path) -> None:
    file = write_predictions(tmp_path / "logits.csv", 300)
    pools = [{*search(file, 0.5, space, recipe.replace({"seed": seed})).labels.selection.ids} for seed in (0, 0, 1)]
    assert pools[0] == pools[1] != pools[2]


def test_unwritable_pseudo_labels_are_refused_before_the_search(tmp_path: Path, command: Callable[..., Any]) -> None:
    write_predictions(tmp_path / "logits.csv", 60)
    done = command("sharpen", "logits.csv", "--out", "/proc/nowhere/labels.csv")
    assert done.returncode == 2
    assert done.stderr.startswith("elta-tune: /proc/nowhere/labels.csv: can't be written: ")
    assert done.stdout == ""
