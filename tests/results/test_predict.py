"""Scoring images that nobody has rated."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from elta_tune.config import TrialConfig
from elta_tune.errors import DataError
from elta_tune.records import TrialFolder
from elta_tune.results.predict import best_first, list_images, predict_images
from elta_tune.results.sources import load_model
from elta_tune.trial import NoReporter, run_trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory, data_root: Path, cache: Path) -> TrialFolder:
    """A finished trial."""
    config = TrialConfig.model_validate(
        {
            "data": {"root": str(data_root), "resize": 36, "crop": 32},
            "model": {"backbone": "test_efficientnet", "pretrained": False},
            "optim": {"lr": 3e-3},
            "training": {"epochs": 1, "batch_size": 8},
        }
    )
    folder = TrialFolder(tmp_path_factory.mktemp("predict") / "trial")
    assert run_trial(config, folder, NoReporter(), cache=cache)["state"] == "complete"
    return folder


def test_a_table_of_the_validation_images_gets_the_trials_own_predictions(
    trial: TrialFolder, data_root: Path, tmp_path: Path
) -> None:
    files = list_images([data_root / "val.csv"])
    found = list(predict_images(load_model(str(trial.path), tmp_path), files, batch_size=5))
    own = pd.read_csv(trial.predictions_file)
    assert [one.image_id for one in found] == list(own["image_id"])
    np.testing.assert_allclose([one.score for one in found], own["score"], atol=1e-5)
    np.testing.assert_allclose([one.distribution for one in found], own.filter(regex=r"^score\d"), atol=1e-5)


@pytest.fixture
def photos(tmp_path: Path, data_root: Path) -> Path:
    """A folder with good images in two levels, one that is broken and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number, place in enumerate((folder, folder / "below", folder)):
        name = f"test_{number:03d}.png"
        (place / name).write_bytes((data_root / "images" / name).read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 this is no photograph")
    (folder / "notes.txt").write_text("not looked at")
    Image.new("RGBA", (3, 500)).save(folder / "narrow.png")
    return folder


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_formats_hold_the_same_rows_and_reasons(
    suffix: str, trial: TrialFolder, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    done = command("predict", trial.path, photos, "--sort", "--out", f"scores.{suffix}")
    assert done.returncode == 0, done.stderr
    assert "1 of 5 images can't be read" in done.stderr
    file = tmp_path / f"scores.{suffix}"
    if suffix == "csv":
        with file.open(newline="") as opened:
            rows: list[dict[str, Any]] = list(csv.DictReader(opened))
        for row in rows:
            row["distribution"] = [float(row[f"score{k}"]) for k in range(2, 7) if row[f"score{k}"]]
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        pytest.importorskip("pyarrow")
        from pyarrow import parquet

        rows = parquet.read_table(file).to_pylist()
    *good, broken = rows
    assert broken["image_id"].endswith("broken.jpg")
    assert broken["reason"] == "it is no image"
    assert broken["score"] in (None, "")
    scores = [float(row["score"]) for row in good]
    assert scores == sorted(scores, reverse=True)
    again = predict_images(load_model(str(trial.path), tmp_path), list_images([photos]))
    expected = {one.image_id: one for one in again}
    assert {row["image_id"] for row in rows} == set(expected)
    for row in good:
        assert float(row["score"]) == pytest.approx(expected[row["image_id"]].score, abs=1e-5)
        assert row["distribution"] == pytest.approx(list(expected[row["image_id"]].distribution), abs=1e-5)


def test_best_first_is_by_score_with_the_unreadable_last(trial: TrialFolder, photos: Path, tmp_path: Path) -> None:
    files = list_images([photos / "broken.jpg", photos])
    ranked = best_first(predict_images(load_model(str(trial.path), tmp_path), files))
    readable = [one.score for one in ranked if one.score is not None]
    assert readable == sorted(readable, reverse=True)
    assert [one.reason for one in ranked[-2:]] == ["it is no image"] * 2
    assert all(one.reason is None for one in ranked[:-2])


def test_standard_output_is_a_line_per_image(trial: TrialFolder, photos: Path, command: Callable[..., Any]) -> None:
    plain = command("predict", trial.path, photos / "narrow.png", photos / "broken.jpg")
    score, name = plain.stdout.splitlines()[0].split()
    assert name == str(photos / "narrow.png")
    assert 1 < float(score) < 5
    assert plain.stdout.splitlines()[1].endswith("broken.jpg  (it is no image)")
    lines = command("predict", trial.path, photos / "narrow.png", "--json").stdout.splitlines()
    assert json.loads(lines[0])["score"] == pytest.approx(float(score), abs=1e-4)


def test_a_listed_image_that_is_not_there_is_a_row(trial: TrialFolder, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("image_id\ntest_000\ngone\n")
    first, second = predict_images(load_model(str(trial.path), tmp_path), list_images([table], photos))
    assert (first.image_id, first.reason) == ("test_000", None)
    assert (second.image_id, second.score, second.reason) == ("gone", None, "there is no such file")


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        list_images([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        list_images([tmp_path / "gone"])


def test_a_file_of_an_unknown_kind_is_refused_before_anything_is_predicted(
    command: Callable[..., Any], photos: Path
) -> None:
    done = command("predict", "no-model", photos, "--out", "scores.xls")
    assert done.returncode == 2
    assert ".csv, .jsonl, .parquet" in done.stderr


def test_without_pyarrow_its_install_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], photos: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command("predict", "no-model", photos, "--out", "scores.parquet")
    assert done.returncode == 2
    assert "elta-tune[parquet]" in done.stderr
