"""No command writes into a folder that something else owns."""

from __future__ import annotations

from pathlib import Path

import pytest

from elta_tune.errors import StudyError
from elta_tune.models.outputs import check_output
from elta_tune.records import owner
from elta_tune.records.owner import owner_of, refuse_owned_trial


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A study with a trial, a training of its own, a cache and a folder of images."""
    for file in (
        *("study/study.yaml", "study/trials/0000/config.yaml", "study/trials/0000/metrics.jsonl", "study/nni/db"),
        *(
            "begun/study.lock",
            "train-tiny/config.yaml",
            "train-tiny/result.json",
            "data/images/a.jpg",
            "data/train.csv",
        ),
        *("cache/pixels-01234567/lock", "cache/demo-0123456789ab/train.csv", "recipes/config.yaml"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "study")
    return tmp_path


OWNED = {
    "study/best.ckpt": "the study",
    "study/export": "the study",
    "study/nni/best.onnx": "the study",
    "study/trials/0000/best.csv": "the trial",
    "study/trials/0001": "the study",
    "begun/best.ckpt": "the study",
    "train-tiny/scores.csv": "the trial",
    "cache/pixels-01234567/best.ckpt": "the image cache",
    "cache/demo-0123456789ab/images/a.csv": "the image cache",
    "link/best.ckpt": "the study",
}


@pytest.mark.parametrize("place", OWNED)
def test_an_output_in_an_owned_folder_is_refused(places: Path, place: str) -> None:
    with pytest.raises(StudyError, match=f"belongs to {OWNED[place]} ") as refused:
        check_output(places / place, force=False, argument="out")
    assert "`force=True`" in str(refused.value.hint)
    check_output(places / place, force=True, argument="out")


@pytest.mark.parametrize("place", ["best.ckpt", "out/best.ckpt", "data/scores.csv", "cache/best.ckpt", "recipes/a.csv"])
def test_an_output_elsewhere_is_written(places: Path, place: str) -> None:
    check_output(places / place, force=False, argument="out")


def test_shipped_recipes_are_owned() -> None:
    assert owner_of(owner.SHIPPED[0] / "demo.yaml") == f"what elta-tune ships: {owner.SHIPPED[0]}"


def test_training_resumes_only_in_its_own_folder(places: Path) -> None:
    refuse_owned_trial(places / "train-tiny")
    refuse_owned_trial(places / "new")
    for place in (
        "study",
        "study/trials/0000",
        "study/trials/0009",
        "train-tiny/inside",
        "link",
        "cache/demo-0123456789ab",
    ):
        with pytest.raises(StudyError, match="belongs to"):
            refuse_owned_trial(places / place)
