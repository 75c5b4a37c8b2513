"""An exported file predicts as its trial did, or there is none."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from elta_tune.config import TrialConfig, load_recipe
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import StudyError
from elta_tune.models.checkpoint import load_checkpoint
from elta_tune.records import StudyFolder, TrialResult
from elta_tune.results.export import export, measure_trial
from elta_tune.trial import NoReporter, run_trial

pytestmark = pytest.mark.usefixtures("measured_here")
Change = Callable[..., None]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_file_holds_the_best_epoch(
    study: StudyFolder, result: TrialResult, cache: Path, tmp_path: Path, kind: Literal["ckpt", "safetensors"]
) -> None:
    path = tmp_path / "out" / f"best.{kind}"
    assert export(study, result, path, kind, cache=ImageCache(cache)) <= 1e-5
    assert left_in(path.parent) == (["best.md"] if kind == "safetensors" else []) + [path.name]
    loaded = load_checkpoint(path)
    weights = load_file(study.trial(0).best_file)
    assert loaded.state_dict.keys() == weights.keys()
    assert all(torch.equal(loaded.state_dict[name], weights[name]) for name in weights)
    recipe = load_recipe(study.trial(0).config_file)
    assert loaded.config == recipe.replace({} if kind == "ckpt" else {"data.root": None})
    assert loaded.metrics == result.metrics
    assert loaded.epoch == result.best_epoch
    assert loaded.source["study"] == "study"
    assert loaded.source["trial"] == 0


def test_export_predicts_what_the_trial_recorded(study: StudyFolder, result: TrialResult, cache: Path) -> None:
    measured = measure_trial(study, result, "val", cache=ImageCache(cache))
    with study.trial(0).predictions_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert measured["ids"] == [row["image_id"] for row in rows]
    np.testing.assert_allclose(measured["scores"], [float(row["score"]) for row in rows], atol=1e-5)
    assert measured["metrics"] == pytest.approx(result.metrics, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", ["head.0.weight", "backbone.conv_stem.weight"])
def test_a_changed_weight_is_found_and_nothing_is_written(
    study: StudyFolder, result: TrialResult, cache: Path, tmp_path: Path, change_weights: Change, name: str
) -> None:
    change_weights(name, 1.0)
    with pytest.raises(StudyError, match="does not predict as trial 0 did: scores differ by up to") as refused:
        export(study, result, tmp_path / "out" / "best.ckpt", "ckpt", cache=ImageCache(cache))
    found = re.search(r"up to ([\d.e-]+), more than 4\.44e-06", refused.value.message)  # 1e-5 of 1…10, on 1…5
    assert found is not None
    assert float(found[1]) > 1e-3
    assert left_in(tmp_path / "out") == []


def test_existing_file_survives_a_failed_export(
    study: StudyFolder, result: TrialResult, cache: Path, tmp_path: Path, change_weights: Change
) -> None:
    (tmp_path / "best.ckpt").write_text("an earlier one")
    change_weights("head.0.weight", 1.0)
    with pytest.raises(StudyError, match="does not predict"):
        export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache))
    assert (tmp_path / "best.ckpt").read_text() == "an earlier one"


@pytest.mark.parametrize(("device", "fits"), [("as recorded", False), ("of another make", True)])
def test_another_make_of_device_may_differ_a_little_more(
    study: StudyFolder,
    result: TrialResult,
    cache: Path,
    tmp_path: Path,
    change_weights: Change,
    device: str,
    fits: bool,
) -> None:
    """Its sums run in another order: as far apart as this small change is."""
    change_weights("head.2.bias", 3e-4)
    if device == "of another make":
        assert result.environment is not None
        result = replace(result, environment=replace(result.environment, device_name=device))
    if fits:
        assert 1e-5 < export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache)) < 1e-3
    else:
        with pytest.raises(StudyError, match=r"more than 4\.44e-06"):
            export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache))


def test_on_any_scale_the_same_share_of_it_may_differ(
    recipe: TrialConfig, data_root: Path, cache: Path, tmp_path: Path, change_weights: Change
) -> None:
    """A change that is small on 1…10 stays small where ratings go to a million."""
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    for split in ("train", "val"):
        names = [line.partition(",")[0] for line in (root / f"{split}.csv").read_text().splitlines()[1:]]
        rows = [f"{name},{31_250 * number}" for number, name in enumerate(names)]
        (root / f"{split}.csv").write_text("\n".join(["image_id,score", *rows]) + "\n")
    million = {"data.root": str(root), "data.scale": [0, 1e6], "data.threshold": 5e5, "data.spread": 1e5}
    folder = StudyFolder(tmp_path / "other")
    config = recipe.replace({**million, "training.epochs": 1})
    result = run_trial(config, folder.trial(0), NoReporter(), cache=ImageCache(cache), number=0)
    change_weights("head.2.bias", 3e-6, of=folder)
    assert 0 < export(folder, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache)) < 2
    change_weights("head.2.bias", 1e-3, of=folder)
    with pytest.raises(StudyError, match=r"more than 1\.11;"):
        export(folder, result, tmp_path / "again.ckpt", "ckpt", cache=ImageCache(cache))


def test_frozen_features_may_come_from_another_thread_count(
    recipe: TrialConfig, cache: Path, tmp_path: Path, change_weights: Change
) -> None:
    """Whose sums run in another order; its weights are compared to the bit."""
    folder = StudyFolder(tmp_path / "other")
    config = recipe.replace({"model.freeze": True, "simloss.weight": 0, "training.epochs": 1})
    result = run_trial(config, folder.trial(0), NoReporter(), cache=ImageCache(cache), number=0)
    change_weights("head.2.bias", 3e-5, of=folder)
    assert 4.44e-6 < export(folder, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache)) < 4.44e-5
    change_weights("head.2.bias", 1e-3, of=folder)
    with pytest.raises(StudyError, match="does not predict as trial 0 did"):
        export(folder, result, tmp_path / "again.ckpt", "ckpt", cache=ImageCache(cache))


def test_the_order_of_rows_does_not_matter(
    study: StudyFolder, result: TrialResult, cache: Path, data: Path, tmp_path: Path
) -> None:
    header, *rows = (data / "val.csv").read_text().splitlines()
    (data / "val.csv").write_text("\n".join([header, *reversed(rows)]) + "\n")
    assert export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache)) < 1e-5


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("val.csv", lambda lines: lines[:-1]),
        ("val.csv", lambda lines: [*lines[:-1], lines[-1].partition(",")[0] + ",9,9,9,9,9"]),
        ("train.csv", lambda lines: lines[:-1]),
    ],
    ids=["a row less", "another rating", "a training row less"],
)
def test_changed_data_are_named(
    study: StudyFolder,
    result: TrialResult,
    cache: Path,
    data: Path,
    tmp_path: Path,
    file: str,
    change: Callable[[list[str]], list[str]],
) -> None:
    path = data / file
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(StudyError, match=rf"{file}: its images or ratings have changed since the trial"):
        export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache))
    assert not (tmp_path / "best.ckpt").exists()


def test_data_that_are_gone_are_named(
    study: StudyFolder, result: TrialResult, cache: Path, data: Path, tmp_path: Path
) -> None:
    (data / "val.csv").unlink()
    with pytest.raises(StudyError, match=r"can't be measured on the val split: .*val\.csv"):
        export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache))


def test_a_split_that_never_was_is_refused(study: StudyFolder, result: TrialResult, cache: Path, data: Path) -> None:
    (data / "test.csv").unlink()
    with pytest.raises(StudyError, match="can't be measured on the test split: there is no test split"):
        measure_trial(study, result, "test", cache=ImageCache(cache))


@pytest.mark.parametrize("name", ["best.safetensors", "predictions.csv"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_damaged_files_of_a_trial_are_named(
    study: StudyFolder, result: TrialResult, cache: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = study.trial(0).path / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(StudyError, match=rf"{name}: the .* can't be read"):
        export(study, result, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache))


def test_a_place_that_cannot_be_written_is_named(
    study: StudyFolder, result: TrialResult, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"file/best\.ckpt: can't be written"):
        export(study, result, tmp_path / "file" / "best.ckpt", "ckpt", cache=ImageCache(cache))


def test_images_may_have_any_name(recipe: TrialConfig, data_root: Path, cache: Path, tmp_path: Path) -> None:
    """Also one that a table's reader takes for a missing value, or that has its separator in it."""
    root = tmp_path / "data"
    shutil.copytree(data_root, root)
    text = (root / "val.csv").read_text()
    for number, name in enumerate(("NA", "null", "a, b.png", 'q"uote.png')):
        old = f"val_{number:03d}.png"
        (root / "images" / old).rename(root / "images" / (name if "." in name else f"{name}.png"))
        text = text.replace(old, '"' + name.replace('"', '""') + '"')
    (root / "val.csv").write_text(text)
    folder = StudyFolder(tmp_path / "other")
    config = recipe.replace({"data.root": str(root), "training.epochs": 1})
    found = run_trial(config, folder.trial(0), NoReporter(), cache=ImageCache(cache), number=0)
    assert export(folder, found, tmp_path / "best.ckpt", "ckpt", cache=ImageCache(cache)) <= 1e-5
