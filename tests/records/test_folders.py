"""Folders stay whole through kills at any moment, full disks, and two processes at once."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sample_records import epoch_record, trial_result

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import StudyError
from elta_tune.files import to_json
from elta_tune.records import EpochRecord, StudyFolder, TrialFolder, find_studies, open_study
from elta_tune.training.self_training import Epoch, self_training_rounds
from elta_tune.trial import record_failure


class Killed(BaseException):
    """Replaces a kill, so that the test can continue in the same process."""


# metrics.jsonl


def test_a_torn_last_line_is_dropped_wherever_it_was_torn(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    lines = [epoch_record(step, srcc=math.nan if step == 2 else step / 7, größer=1.5) for step in (1, 2, 3)]
    for line in lines:
        folder.append(line)
    whole = folder.metrics_file.read_bytes()
    read = [lines[0], epoch_record(2, srcc=None, größer=1.5), lines[2]]
    assert folder.epochs() == read
    start = whole.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(whole)):
        folder.metrics_file.write_bytes(whole[:length])
        assert folder.epochs() == read[:2]
        folder.append(lines[2])
        assert folder.metrics_file.read_bytes() == whole


def test_an_epoch_is_recorded_once(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    assert folder.epochs() == []
    for step in (1, 2, 2, 1, 3):
        folder.append(epoch_record(step))
    assert [record.step for record in folder.epochs()] == [1, 2, 3]


@pytest.mark.parametrize("line", ["no JSON", "[]", "{}", "null", '{"step": null}', "\0\udcff", "[" * 10**5])
def test_a_damaged_line_is_named_with_its_number(line: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.metrics_file.write_text(f"{to_json(epoch_record(1).to_dict())}\n{line}\n", errors="surrogateescape")
    before = folder.metrics_file.read_bytes()
    for use in (folder.epochs, lambda: folder.append(epoch_record(4))):
        with pytest.raises(StudyError, match=r"/metrics\.jsonl:2: is damaged: "):
            use()
    assert folder.metrics_file.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"state": 1, "trial": 0}', '{"state": "failed"}'])
def test_a_damaged_result_is_named(content: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    folder.result_file.write_text(content)
    with pytest.raises(StudyError, match=r"/result\.json: is damaged: "):
        folder.result()


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    folder, study = TrialFolder(tmp_path), StudyFolder(tmp_path)
    files = {folder.metrics_file: folder.epochs, folder.result_file: folder.result, study.lock_file: study.is_running}
    for file, read in files.items():
        file.mkdir()
        with pytest.raises(StudyError, match=rf"/{file.name}: Is a directory"):
            read()


# Checkpoints


def save(folder: TrialFolder, epoch: Epoch, elapsed: float = 0.0) -> EpochRecord:
    """Saves an epoch as a trial does."""
    record = EpochRecord(epoch.step, epoch.round, epoch.epoch, epoch.best.step, epoch.metrics, elapsed)
    pseudo_labels = None if epoch.selection is None else epoch.selection.to_frame()
    folder.save(record, epoch.checkpoint, epoch.weights, pseudo_labels)
    return record


def two_good_epochs(recipe: TrialConfig, cache: Path, folder: TrialFolder) -> Iterator[Epoch]:
    """Epochs of which each beats the one before; the second ends its round, and selects from the pool."""
    worst = {"evaluation.metric": "mae_low", "evaluation.direction": "minimize", "self_training.rounds": 1}
    dataset = open_dataset(recipe.data, ImageCache(cache))
    for direction in ("minimize", "maximize"):
        config = recipe.replace({**worst, "evaluation.direction": direction})
        epochs = list(self_training_rounds(config, dataset, torch.device("cpu")))[:2]
        if epochs[1].is_best:
            break
    folder.create(config)
    yield from self_training_rounds(config, dataset, torch.device("cpu"))


@pytest.mark.parametrize("renames", [0, 1, 2, 3, 4])
def test_weights_match_the_checkpoint_after_a_kill_at_any_rename(
    renames: int, recipe: TrialConfig, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A best epoch with a selection is four renames: pseudo-labels, new weights, checkpoint, weights."""
    folder = TrialFolder(tmp_path / "trial")
    epochs = two_good_epochs(recipe, cache, folder)
    weights = []
    for epoch in (next(epochs), next(epochs)):
        assert epoch.is_best
        weights.append({name: value.clone() for name, value in epoch.weights.items()})
        if len(weights) == 1:
            save(folder, epoch)
    assert epoch.selection is not None

    real, done = Path.replace, []

    def replace(path: Path, target: Path) -> Path:
        if len(done) == renames:
            raise Killed
        done.append(target)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    try:
        save(folder, epoch)
    except Killed:
        assert renames < 4
    else:
        assert renames == 4 == len(done)
    monkeypatch.undo()
    checkpoint = TrialFolder(folder.path).checkpoint()
    assert checkpoint is not None
    assert checkpoint.state["step"] == checkpoint.record.step == checkpoint.best.step == (2 if renames >= 3 else 1)
    expected = weights[checkpoint.record.step - 1]
    assert all(torch.equal(value, expected[name]) for name, value in checkpoint.state["best_weights"].items())
    assert all(torch.equal(value, expected[name]) for name, value in load_file(folder.best_file).items())
    assert not (folder.path / "best.next.safetensors").exists()


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    assert folder.checkpoint() is None
    assert folder.result() is None


def test_external_failure_keeps_the_best_epoch(recipe: TrialConfig, cache: Path, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "trial")
    epochs = two_good_epochs(recipe, cache, folder)
    epoch = next(epochs)
    folder.append(save(folder, epoch, elapsed=4.5))
    record_failure(folder, "the process was ended by SIGKILL", 7, {"optim.lr": 0.1})
    result = folder.result()
    assert result is not None
    assert (result.trial, result.state, result.reason) == (7, "failed", "the process was ended by SIGKILL")
    assert (result.best_step, result.params, result.seconds) == (1, {"optim.lr": 0.1}, 4.5)
    assert result.value == epoch.best.value
    assert len(folder.predictions_file.read_text().splitlines()) == 17
    assert folder.best_file.exists() and not folder.last_file.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn"])
def test_a_failure_without_a_readable_checkpoint_is_recorded_too(content: bytes | None, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path)
    if content is not None:
        folder.last_file.write_bytes(content)
    record_failure(folder, "why", 0, {})
    result = folder.result()
    assert result is not None
    assert (result.state, result.value, result.metrics, result.seconds) == ("failed", None, {}, 0.0)
    assert not folder.predictions_file.exists()


# Studies

HOLD = """
import sys
from pathlib import Path
from elta_tune.records import StudyFolder
with StudyFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(study: StudyFolder) -> subprocess.Popen[str]:
    """Another process that holds a study."""
    command = [sys.executable, "-c", HOLD, str(study.path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_one_process_holds_a_study_until_it_ends(end: str, tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    with hold(study) as process:
        assert study.is_running()
        with (
            pytest.raises(StudyError, match=rf"study study is already running \(process {process.pid}\)"),
            study.lock(),
        ):
            pass
        if end == "killed":
            process.kill()
        else:
            process.communicate("")
        process.wait()
        assert not study.is_running()
        with study.lock():
            assert study.is_running()
            assert study.lock_file.read_text() == f"process {os.getpid()} on {platform.node()}"
        assert not study.is_running()


def test_looking_at_a_study_leaves_no_trace(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    assert not study.is_running()
    assert not study.path.exists()
    with study.lock():
        pass
    before = study.lock_file.stat()
    assert not study.is_running()
    after = study.lock_file.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_looking_never_keeps_a_study_from_starting(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    study.path.mkdir()
    study.lock_file.touch()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            study.is_running()

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(300):
            with study.lock():
                pass
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_of_many_that_start_at_once_one_holds_the_study(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "study")
    for _ in range(30):
        begun, tried = threading.Barrier(6), threading.Barrier(6)
        holders: list[int] = []

        def start(number: int, begun: threading.Barrier, tried: threading.Barrier, holders: list[int]) -> None:
            begun.wait()
            try:
                with study.lock():
                    holders.append(number)
                    tried.wait()
            except StudyError:
                tried.wait()

        starters = [threading.Thread(target=start, args=(number, begun, tried, holders)) for number in range(6)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        assert len(holders) == 1


def study_with(runs: Path, name: str, *states: str) -> StudyFolder:
    study = StudyFolder(runs / name)
    study.create("name: x\n")
    for number, state in enumerate(states):
        study.trial(number).create(TrialConfig())
        study.trial(number).finish(trial_result(number, state), None)
    return study


def test_study_counts_ended_trials_and_lists_them_by_number(tmp_path: Path) -> None:
    study = study_with(tmp_path, "one", "complete", "pruned", "failed", "complete")
    study.trial(12345).create(TrialConfig())
    study.trial(9999).create(TrialConfig())
    assert [number for number, _ in study.trials()] == [0, 1, 2, 3, 9999, 12345]
    assert [result.state for result in study.results()] == ["complete", "pruned", "failed", "complete"]
    assert study.used_budget() == 3


def test_study_is_found_by_folder_name_or_last_change(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for number, name in enumerate(("b-old", "a-new")):
        study = study_with(runs, name, "complete")
        study.trial(0).append(epoch_record(1))
        for file in study.path.rglob("*"):
            os.utime(file, (number, number))
    assert [study.name for study in find_studies(runs)] == ["b-old", "a-new"]
    assert open_study(None, runs).name == "a-new"
    os.utime(runs / "b-old" / "trials" / "0000" / "metrics.jsonl", (9, 9))
    assert open_study(None, runs).name == "b-old"
    assert open_study("a-new", runs).path == open_study(str(runs / "a-new"), tmp_path).path


def test_missing_study_is_reported_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study in") as caught:
        open_study(None, tmp_path)
    assert "elta-tune run" in str(caught.value.hint)
    study_with(tmp_path, "default-demo")
    with pytest.raises(
        StudyError, match=r"there is no study 'default-dmo' in .* — did you mean 'default-demo'"
    ) as caught:
        open_study("default-dmo", tmp_path)
    assert caught.value.hint == "there are: default-demo"


def test_study_in_preparation_is_not_listed(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path / "prep")
    with hold(study) as process:
        for name in (None, "prep", str(study.path)):
            with pytest.raises(StudyError, match=rf"study prep is being prepared \(process {process.pid}\)") as caught:
                open_study(name, tmp_path)
            assert "elta-tune stop prep" in str(caught.value.hint)
        assert open_study("prep", tmp_path, preparing=True).path == study.path
        with pytest.raises(StudyError) as caught, study.lock():
            pass
        assert caught.value.hint == "end it: elta-tune stop prep; or start another study: `name=NAME`"
        study.create("name: x\n")
        with pytest.raises(StudyError) as caught, study.lock():
            pass
        assert caught.value.hint == "watch it: elta-tune show prep; or start another study: `name=NAME`"
        process.kill()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_a_study_of_another_user_is_named(tmp_path: Path) -> None:
    study_with(tmp_path / "runs", "theirs")
    tmp_path.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(StudyError, match=r"/runs.*: Permission denied"):
            open_study("theirs", tmp_path / "runs")
        with pytest.raises(StudyError, match=r"/runs/theirs/study\.yaml: Permission denied"):
            StudyFolder(tmp_path / "runs" / "theirs").exists()
    finally:
        os.seteuid(0)
