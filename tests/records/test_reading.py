"""Records of any content are read, or refused in one line that names file and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_records import epoch_record, trial_result

from elta_tune.errors import DamagedError
from elta_tune.files import to_json
from elta_tune.records import EpochRecord, RoundRecord, SplitRecord, StudyFolder, TrialFolder, TrialResult
from elta_tune.records.result import VERSION

SPLIT = SplitRecord("train", "train.csv", "/data/train.csv", 7, "abc")
RESULT = trial_result(
    3,
    metrics={"srcc": 0.5, "n_low": 3, "gmean": None},
    params={"optim.lr": 1e-3, "optim.name": "adam", "self_training.rounds": 2, "mixup.alpha": None, "x": True},
    rounds=(RoundRecord(0, 0), RoundRecord(1, 5, diagnosis={"images": 5, "srcc": 0.25}), RoundRecord(2, 0, "none")),
    data={"train": SPLIT, "val": SPLIT},
)


def plain(result: TrialResult) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_json(result.to_dict()))
    return content


def test_records_survive_their_files(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.finish(RESULT, None)
    assert folder.result() == RESULT
    content = plain(RESULT)
    assert folder.result_file.read_text() == json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    assert content["metrics"]["n_low"] == 3 and isinstance(content["metrics"]["n_low"], int)
    assert content["rounds"][1]["diagnosis"] == {"images": 5, "srcc": 0.25}
    assert "skipped" not in content["rounds"][1] and "environment" not in content
    record = epoch_record(2, best_step=1, srcc=0.25, pseudo_labels=4, loss=None)
    folder.append(record)
    assert folder.epochs() == [record]
    assert record.pseudo_labels == 4


VALUES: dict[str, str] = {
    "null": "null",
    "text": '"x"',
    "escape": '"\\u001b[31mred"',
    "list": "[]",
    "object": '{"deep": {}}',
    "infinite": "1e999",
    "NaN": "NaN",
    "huge": "1" + "0" * 400,
    "true": "true",
    "negative": "-1",
    "fraction": "0.5",
}
"""What may stand in the place of a value, as JSON."""
REQUIRED = ("trial", "state", "reason", "value", "best_step", "metrics", "params", "rounds", "seconds")
ALLOWED: dict[str, set[str]] = {
    "trial": {"null"},
    "reason": {"null", "text", "escape"},
    "value": {"negative", "fraction"},
    "metrics": set(),
    "rounds": {"list"},
    "seconds": {"negative", "fraction"},
    "data": {"null"},
    "version": set(),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", [*REQUIRED, "data", "version"])
def test_a_wrong_field_of_a_result_is_named(name: str, kind: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    text = to_json({**plain(RESULT), name: "HERE"}).replace('"HERE"', VALUES[kind])
    folder.result_file.write_text(text)
    if kind in ALLOWED.get(name, set()):
        assert isinstance(folder.result(), TrialResult)
        return
    with pytest.raises(DamagedError) as caught:
        folder.result()
    message = caught.value.message
    assert message.startswith(f"{folder.result_file}: is damaged: ")
    assert kind == "NaN" or name in message
    assert "\n" not in message and "\x1b" not in message and len(message) < 400


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_of_a_result_is_named(name: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    content = plain(RESULT)
    del content[name]
    folder.result_file.write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=rf"result\.json: is damaged: {name}: is missing"):
        folder.result()


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("name", ["step", "round", "epoch", "best_step", "elapsed", "srcc"])
def test_a_wrong_field_of_an_epoch_is_named(name: str, kind: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    good = to_json(epoch_record(1, srcc=0.5).to_dict())
    wrong = to_json({**epoch_record(2, srcc=0.5).to_dict(), name: "HERE"}).replace('"HERE"', VALUES[kind])
    folder.metrics_file.write_text(f"{good}\n{wrong}\n")
    allowed = {"srcc": {"null", "negative", "fraction"}, "elapsed": {"negative", "fraction"}}
    if kind in allowed.get(name, set()):
        assert len(folder.epochs()) == 2
        return
    with pytest.raises(DamagedError, match=r"/metrics\.jsonl:2: is damaged: ") as caught:
        folder.epochs()
    assert kind == "NaN" or name in caught.value.message


DAMAGED: list[Callable[[str], str]] = [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[" * 10**5,
    lambda text: text.replace('"trial"', '"trial": 4, "trial"', 1),
    lambda text: text.replace('"complete"', '"exploded"'),
    lambda text: "[]",
    lambda text: "null",
]


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_json_is_one_line(damage: Callable[[str], str], tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.result_file.write_text(damage(to_json(plain(RESULT))))
    with pytest.raises(DamagedError, match=r"^[^\n]*/result\.json: is damaged: [^\n]+$"):
        folder.result()


def test_a_result_of_a_newer_version_is_refused_as_such(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.result_file.write_text(json.dumps({**plain(RESULT), "version": VERSION + 1, "unknown": {}}))
    with pytest.raises(DamagedError, match="a newer version of elta-tune wrote it") as caught:
        folder.result()
    assert caught.value.hint == "update elta-tune"
    folder.result_file.write_text(json.dumps({**plain(RESULT), "unknown": {}}))
    assert folder.result() == RESULT


def test_an_epoch_in_two_lines_is_damage(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    line = to_json(epoch_record(1).to_dict())
    folder.metrics_file.write_text(f"{line}\n{line}\n")
    with pytest.raises(DamagedError, match=r"metrics\.jsonl:2: is damaged: step: "):
        folder.epochs()


def test_only_folders_with_a_number_are_trials(tmp_path: Path) -> None:
    trials = tmp_path / "trials"
    for name in ("0000", "0007", "12345", "0²", "00000", "1_0", "7", "-001", "٠٠٠١", "x", "9" * 30):
        (trials / name).mkdir(parents=True)
    (trials / "0003").write_text("a file")
    assert [number for number, _ in StudyFolder(tmp_path).trials()] == [0, 7, 12345]


def test_an_epoch_without_a_metric_has_nan() -> None:
    record = EpochRecord.from_dict({"step": 1, "round": 0, "epoch": 1, "best_step": 1, "elapsed": 1, "a": None}, "x")
    assert record.value("a") != record.value("a") and record.value("b") != record.value("b")
