"""A damaged result is rebuilt from the rest of its folder; what is sound is not touched."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import StudyError
from elta_tune.records import EpochRecord, StudyFolder
from elta_tune.space.space import SearchSpace
from elta_tune.studies.optuna.study import OptunaStudy
from elta_tune.studies.plan import make_plan, record_plan
from elta_tune.studies.repair import repair_study
from elta_tune.trial import NoReporter, TrialPruned, run_trial


class PruneAt:
    """Prunes a trial after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def report(self, record: EpochRecord) -> None:
        if record.step == self.step:
            raise TrialPruned


@pytest.fixture(scope="module")
def trained(data_root: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of a complete trial and a pruned one, with self-training. Tests only read it."""
    recipe = TrialConfig.model_validate(
        {
            "data": {"root": str(data_root), "resize": 36, "crop": 32},
            "model": {"backbone": "test_efficientnet", "pretrained": False},
            "optim": {"lr": 3e-3},
            "training": {"epochs": 1, "batch_size": 8},
            "self_training": {"rounds": 1, "epochs": 1},
            "sharpening": {"threshold": 0.2},
        }
    )
    space = {"parameters": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}}}
    plan = make_plan(SearchSpace.model_validate(space), recipe)
    study = StudyFolder(tmp_path_factory.mktemp("repair") / "study")
    record_plan(study, plan, {"backend": "optuna"})
    for number, reporter in enumerate((NoReporter(), PruneAt(1))):
        params = {"optim.lr": plan.recipe.optim.lr}
        run_trial(plan.recipe, study.trial(number), reporter, cache=ImageCache(cache), number=number, params=params)
    OptunaStudy(study, plan, cache).unfinished()
    return study.path


@pytest.fixture
def study(trained: Path, tmp_path: Path) -> StudyFolder:
    return StudyFolder(shutil.copytree(trained, tmp_path / "study"))


def content_of(study: StudyFolder) -> dict[str, bytes]:
    files = (path for path in study.path.rglob("*") if path.is_file() and path != study.lock_file)
    return {str(path.relative_to(study.path)): path.read_bytes() for path in files}


def without_time(text: bytes) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text)
    del content["seconds"]
    return content


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content.replace(b'"value": ', b'"value": "x", "was": '),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=["empty", "half", "field"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_rebuilt_result_equals_the_lost_one(
    study: StudyFolder, cache: Path, number: int, damage: Callable[[bytes], bytes]
) -> None:
    before = content_of(study)
    file = study.trial(number).result_file
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    with pytest.raises(StudyError, match="is damaged") as caught:
        study.results()
    assert "elta-tune repair" in str(caught.value.hint)
    (line,) = repair_study(study, cache)
    state = ("complete", "pruned")[number]
    assert line.startswith(f"trial {number}: {file}: is damaged: ")
    assert line.endswith(f"; rebuilt as {state}; the damaged file is kept as result.json.damaged")
    rebuilt, lost = without_time(file.read_bytes()), without_time(sound)
    assert number == 0 or rebuilt.pop("reason") in (lost.pop("reason"), "the reason was lost with the result")
    assert rebuilt == lost
    after = content_of(study)
    kept = f"trials/000{number}/result.json"
    assert after.pop(f"{kept}.damaged") == damage(sound)
    assert {name: text for name, text in after.items() if name != kept} == {
        name: text for name, text in before.items() if name != kept
    }
    assert list(repair_study(study, cache)) == []


def test_a_sound_study_is_left_as_it_is(study: StudyFolder, cache: Path) -> None:
    before = content_of(study)
    assert list(repair_study(study, cache)) == []
    assert content_of(study) == before


def test_unrepairable_trial_is_named_and_kept(study: StudyFolder, cache: Path) -> None:
    trial = study.trial(0)
    trial.result_file.write_bytes(b"")
    trial.best_file.write_bytes(b"torn")
    before = content_of(study)
    (line,) = repair_study(study, cache)
    assert "it can't be rebuilt: " in line and "best.safetensors: is damaged" in line
    assert content_of(study) == before


def test_trial_with_a_checkpoint_resumes(study: StudyFolder, cache: Path) -> None:
    study.trial(0).result_file.write_bytes(b"{")
    study.trial(0).last_file.write_bytes(b"the checkpoint")
    (line,) = repair_study(study, cache)
    assert line.endswith("kept as result.json.damaged: `elta-tune run` finishes the trial from its checkpoint")
    assert study.trial(0).result() is None and study.trial(0).last_file.exists()


def test_a_damaged_database_is_set_aside(study: StudyFolder, cache: Path) -> None:
    study.database.write_bytes(b"garbage " * 1000)
    (line,) = repair_study(study, cache)
    assert line.startswith(f"{study.database}: is damaged: ") and "study.db.damaged" in line
    assert list(repair_study(study, cache)) == []  # it was made again
    with sqlite3.connect(study.database) as connection:
        assert connection.execute("select state from trials order by number").fetchall() == [("COMPLETE",), ("PRUNED",)]
    connection.close()


def test_a_running_study_is_not_repaired(study: StudyFolder, cache: Path) -> None:
    study.trial(0).result_file.write_bytes(b"")
    with study.lock(), pytest.raises(StudyError, match="is already running"):
        list(repair_study(study, cache))
    assert study.trial(0).result_file.read_bytes() == b""
