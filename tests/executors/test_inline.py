"""The inline executor: trials of this process, with the local executor's results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from elta_tune.errors import ConfigError
from elta_tune.executors import Executor, Job, Reported, Slot, load_executor
from elta_tune.executors.inline import InlineExecutor
from elta_tune.executors.local import LocalExecutor
from elta_tune.records import TrialFolder

MakeJob = Callable[..., Job]


def run(executor: Executor, job: Job) -> list[dict[str, object]]:
    """What the epochs measured."""
    records = []
    executor.start(job)
    while executor.running:
        for event in executor.wait(240):
            if isinstance(event, Reported):
                records.append(event.record.to_dict())
                executor.answer(event.number, "go on")
    times = ("seconds", "elapsed", "images_per_second", "peak_memory_mb")
    return [{name: value for name, value in record.items() if name not in times} for record in records]


def test_results_are_the_local_executors(make_job: MakeJob, tmp_path: Path) -> None:
    jobs = [make_job(0, {"self_training.rounds": 1}, tmp_path / name) for name in ("inline", "local")]
    here, there = (
        run(kind([Slot("cpu", 1)]), job) for kind, job in zip((InlineExecutor, LocalExecutor), jobs, strict=True)
    )
    assert here == there
    one, other = ((job.folder / "best.safetensors").read_bytes() for job in jobs)
    assert one == other
    processes = [result.environment.process for job in jobs if (result := TrialFolder(job.folder).result())]
    assert processes[0] == os.getpid() != processes[1]


def test_crash_keeps_its_traceback_and_the_trial(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    executor, job = InlineExecutor([Slot("cpu", 1)]), make_job(0, {"training.epochs": 3})
    executor.start(job)
    executor.wait(0)
    executor.answer(0, "go on")
    with monkeypatch.context() as patch:
        patch.setattr("elta_tune.training.self_training.train_epoch", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            executor.wait(0)
    assert executor.has_room and TrialFolder(job.folder).result() is None
    assert [record["step"] for record in run(executor, job)] == [1, 2, 3]


def test_several_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="one trial at a time"):
        InlineExecutor([Slot("cpu", 1)] * 2)


def test_unknown_executor_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`executor=inlin`: should be local or inline.*did you mean 'inline'"):
        load_executor("inlin")
