"""Scoring unrated images."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import ConfigError, DataError, OutOfMemoryError
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.records import TrialFolder
from elta_tune.results.evaluate import evaluate_model
from elta_tune.results.predict import best_first, list_images, predict_images
from elta_tune.results.sources import load_model
from elta_tune.results.tables import write_table


def test_predicting_the_validation_images_repeats_the_trial(
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
    assert "1 of 5 images could not be scored" in done.stderr
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
    assert broken["reason"] == "it is not an image"
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
    assert [one.reason for one in ranked[-2:]] == ["it is not an image"] * 2
    assert all(one.reason is None for one in ranked[:-2])


def test_standard_output_is_a_line_per_image(trial: TrialFolder, photos: Path, command: Callable[..., Any]) -> None:
    plain = command("predict", trial.path, photos / "narrow.png", photos / "broken.jpg")
    score, name = plain.stdout.splitlines()[0].split()
    assert name == str(photos / "narrow.png")
    assert 1 < float(score) < 5
    assert plain.stdout.splitlines()[1].endswith("broken.jpg  (it is not an image)")
    lines = command("predict", trial.path, photos / "narrow.png", "--json").stdout.splitlines()
    assert json.loads(lines[0])["score"] == pytest.approx(float(score), abs=1e-4)


def test_listed_image_that_is_missing_is_a_row(trial: TrialFolder, photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("image_id\ntest_000\ngone\n")
    first, second = predict_images(load_model(str(trial.path), tmp_path), list_images([table], photos))
    assert (first.image_id, first.reason) == ("test_000", None)
    assert (second.image_id, second.score, second.reason) == ("gone", None, "there is no such file")


def test_pipes_and_devices_are_not_read(trial: TrialFolder, photos: Path, tmp_path: Path) -> None:
    for name in ("pipe.jpg", "pipe.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    files = list_images([tmp_path / name for name in ("pipe.jpg", "pipe.csv", "zero.png")] + [photos / "narrow.png"])
    *odd, good = predict_images(load_model(str(trial.path), tmp_path), files)
    assert [one.reason for one in odd] == ["it is not a regular file"] * 3
    assert good.reason is None


def test_an_image_may_come_by_a_pipe_of_the_shell(trial: TrialFolder, photos: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, (photos / "narrow.png").read_bytes())
    os.close(writer)
    files = list_images([Path(f"/dev/fd/{reader}"), photos / "narrow.png"])
    piped, named = predict_images(load_model(str(trial.path), tmp_path), files)
    os.close(reader)
    assert piped.score == pytest.approx(named.score)


def test_a_model_that_predicts_no_numbers_is_the_reason(diverged: Checkpoint, photos: Path) -> None:
    found = {one.image_id: one for one in predict_images(diverged, list_images([photos]))}
    assert found.pop("broken.jpg").reason == "it is not an image"
    assert {(one.score, one.distribution, one.reason) for one in found.values()} == {
        (None, None, "the model's output is not finite")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("photos", "--json", "--out", "scores.csv"), "predict: --json and --out exclude each other"),
        (("photos", "--set", "data.crop=64"), "--set: data.crop: has no effect here; what has: data.columns.id"),
        (("photos", "--images", "nowhere"), "--images nowhere: there is no such folder"),
        (("photos", "--images", "photos"), "--images photos: is for tables with image ids, and no path is one"),
        (("gone.csv", "--images", "photos"), "gone.csv: there is no such file or folder"),
    ],
)
def test_options_without_effect_are_refused(
    arguments: tuple[str, ...], message: str, trial: TrialFolder, photos: Path, command: Callable[..., Any]
) -> None:
    done = command("predict", trial.path, *arguments)
    assert (done.returncode, done.stdout, done.stderr.startswith(f"elta-tune: {message}")) == (2, "", True), done.stderr


def test_the_column_of_ids_may_be_named(
    trial: TrialFolder, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "list.csv").write_text("shot,place\ntest_000,Rome\n")
    arguments = ("predict", trial.path, "list.csv", "--images", photos)
    assert command(*arguments).returncode == 2
    assert command(*arguments, "--set", "data.columns.id=shot").stdout.endswith("  test_000\n")


def test_predict_and_evaluate_agree_bit_exactly(
    trial: TrialFolder, data_root: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoint = load_model(str(trial.path), tmp_path)
    evaluated = evaluate_model(checkpoint, checkpoint.config.data, "val", cache=ImageCache(cache)).predictions
    predicted = list(predict_images(checkpoint, list_images([data_root / "val.csv"])))
    assert [one.score for one in predicted] == list(evaluated.scores)
    assert evaluated.distributions is not None
    assert [one.distribution.tolist() for one in predicted if one.distribution is not None] == (
        evaluated.distributions.tolist()
    )


def test_convolutions_are_exact_only_while_a_batch_is_predicted(
    trial: TrialFolder, photos: Path, tmp_path: Path
) -> None:
    before, seen = torch.backends.cudnn.allow_tf32, []
    with register_module_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32)):
        for _ in predict_images(load_model(str(trial.path), tmp_path), list_images([photos]), batch_size=2):
            assert torch.backends.cudnn.allow_tf32 == before
    assert {*seen} == {False}


def test_images_of_a_folder_have_the_ids_of_rating_files(photos: Path, data_root: Path) -> None:
    assert {one.image_id for one in list_images([data_root / "images"])} >= set(
        pd.read_csv(data_root / "val.csv").image_id
    )
    alone = {one.image_id: one.path for one in list_images([photos])}
    assert alone["below/test_001.png"] == photos / "below" / "test_001.png"
    both = [one.image_id for one in list_images([photos, photos / "below"])]
    assert both.count(str(photos / "below" / "test_001.png")) == 2


def test_predictions_can_be_sharpened_despite_a_broken_image(
    trial: TrialFolder, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    assert command("predict", trial.path, photos, "--out", "logits.csv").returncode == 0
    holdout = ("--holdout", trial.predictions_file)
    low = "parameters: {sharpening.threshold: {type: float, low: 0.01, high: 0.2}}\n"  # after an epoch none is sure
    (tmp_path / "low.yaml").write_text(low)
    options = ("--space", "low.yaml", "--trials", "5", "--json", "--set", "sharpening.threshold=0.01")
    done = command("sharpen", "logits.csv", *holdout, *options)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["left_out"], answer["pool"]["images"], answer["scale"]) == (1, 4, [1, 5])
    val = pd.read_csv(trial.predictions_file)["image_id"][0]
    (photos / val).write_bytes((photos / "test_000.png").read_bytes())
    assert command("predict", trial.path, photos, "--out", "logits.csv", "--force").returncode == 0
    refused = command("sharpen", "logits.csv", *holdout, *options, "--force")
    assert (refused.returncode, f"the first {val!r}" in refused.stderr) == (2, True)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", None])
def test_a_name_that_is_not_utf8_is_written_with_escapes(
    suffix: str | None, trial: TrialFolder, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    folder = tmp_path / "old"
    folder.mkdir()
    for name in (b"caf\xe9.png", b"caf\xe9.jpg"):
        source = photos / ("test_000.png" if name.endswith(b"png") else "broken.jpg")
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(source.read_bytes())
    done = command("predict", trial.path, folder, *([] if suffix is None else ["--out", f"scores.{suffix}"]))
    assert done.returncode == 0, done.stderr
    written = done.stdout.encode() if suffix is None else (tmp_path / f"scores.{suffix}").read_bytes()
    for ending in (b"png", b"jpg"):
        assert b"caf\\" + (b"\\" if suffix == "jsonl" else b"") + b"udce9." + ending in written


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), OutOfMemoryError),
        (RuntimeError("expected scalar type Half"), RuntimeError),
    ],
)
def test_a_fault_of_the_model_is_not_blamed_on_the_file(
    raised: Exception, expected: type[Exception], trial: TrialFolder, photos: Path, tmp_path: Path
) -> None:
    def failing(*arguments: object) -> None:
        raise raised

    checkpoint = load_model(str(trial.path), tmp_path)
    predictions = predict_images(checkpoint, list_images([photos]), batch_size=2)
    with register_module_forward_pre_hook(failing), pytest.raises(expected) as refused:
        write_table(tmp_path / "scores.csv", predictions, 5)
    assert not list(tmp_path.glob("*scores*"))
    if isinstance(refused.value, OutOfMemoryError):
        assert refused.value.hint == "take fewer images at a time: `batch_size=N`"
    else:
        assert refused.value is raised


def test_existing_file_is_replaced_only_by_force(
    trial: TrialFolder, photos: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("image_id\ntest_000.png\n")
    arguments = ("predict", trial.path, "list.csv", "--images", photos, "--out", "list.csv")
    refused = command(*arguments)
    assert (refused.returncode, listed.read_text()) == (2, "image_id\ntest_000.png\n")
    assert "list.csv: already exists" in refused.stderr
    assert "--force, or choose another --out" in refused.stderr
    assert command(*arguments, "--force").returncode == 0
    assert listed.read_text().startswith("image_id,score,score2")


@pytest.mark.parametrize("place", ["/proc/x.csv", "/proc/nowhere/x.csv"])
def test_unwritable_output_is_refused_before_predicting(place: str, command: Callable[..., Any], photos: Path) -> None:
    done = command("predict", "no-model", photos, "--out", place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"elta-tune: {place}: can't be written: ")


def test_a_device_is_never_replaced(command: Callable[..., Any], tmp_path: Path, photos: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    done = command("predict", "no-model", photos, "--out", "pipe.csv", "--force")
    assert (done.returncode, "pipe.csv: is not a file, and can't be replaced" in done.stderr) == (2, True)


def test_images_may_be_listed_in_an_excel_sheet(data_root: Path, tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["image_id"], ["val_000.png"], ["val_001.png"]):
        book.active.append(row)
    book.save(tmp_path / "sheet.xlsx")
    found = list_images([tmp_path / "sheet.xlsx"], data_root / "images")
    assert [one.image_id for one in found] == ["val_000.png", "val_001.png"]
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(DataError, match="an Excel file of the old format"):
        list_images([tmp_path / "old.xls"])


def test_missing_device_is_reported_with_its_option(
    trial: TrialFolder, photos: Path, command: Callable[..., Any]
) -> None:
    done = command("predict", trial.path, photos, "--device", "cuda:99")
    assert (done.returncode, done.stderr.splitlines()[-1].startswith("elta-tune: --device cuda:99: ")) == (2, True)


def test_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        list_images([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        list_images([tmp_path / "gone"])
    with pytest.raises(ConfigError, match=r"^predict: name at least one"):
        list_images([])


def test_unknown_output_format_is_refused_before_predicting(command: Callable[..., Any], photos: Path) -> None:
    done = command("predict", "no-model", photos, "--out", "scores.xls")
    assert done.returncode == 2
    assert ".csv, .jsonl, .parquet" in done.stderr


def test_without_pyarrow_the_message_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any], photos: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = command("predict", "no-model", photos, "--out", "scores.parquet")
    assert done.returncode == 2
    assert "elta-tune[parquet]" in done.stderr
