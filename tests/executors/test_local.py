"""The local executor: slots share devices and cores; a trial's process ends with its supervisor's, not by Ctrl-C."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from elta_tune.errors import ConfigError
from elta_tune.executors import Ended, Job, Reported, Slot, cores_text, plan_slots
from elta_tune.executors.local import LocalExecutor
from elta_tune.records import TrialFolder

SUPERVISOR = """
import pickle, sys
from elta_tune.executors import Slot
from elta_tune.executors.local import LocalExecutor

if __name__ == "__main__":
    executor = LocalExecutor([Slot("cpu", 1)] * 2)
    for job in pickle.load(open(sys.argv[1], "rb")):
        executor.start(job)
        print("reported", executor.wait(240)[0].step, flush=True)
    executor.answer(1, "go on")
    while executor.running:
        print("heard", executor.wait(240), flush=True)
"""
"""Trial 0 waits for its verdict, trial 1 trains, and nobody will answer either."""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; a zombie, whose parent here may be nobody's child, is dead."""
    return [item for item in processes if item.is_running() and item.status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(processes)


def test_nothing_is_left_when_the_supervisor_is_killed(make_job: Callable[..., Job], tmp_path: Path) -> None:
    script, jobs = tmp_path / "supervisor.py", tmp_path / "jobs.pickle"
    script.write_text(SUPERVISOR)
    jobs.write_bytes(pickle.dumps([make_job(0), make_job(1, {"training.epochs": 10_000})]))
    with subprocess.Popen([sys.executable, script, jobs], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert [supervisor.stdout.readline() for _ in range(2)] == ["reported 1\n"] * 2
        children = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()
    assert len(children) == 4  # forkserver, resource tracker, two trials
    assert wait_until_gone(children) == []


@pytest.fixture
def waiting(make_job: Callable[..., Job]) -> Iterator[tuple[LocalExecutor, list[Job]]]:
    """Two trials that wait for their verdict after an epoch."""
    executor, jobs = LocalExecutor([Slot("cpu", 1)] * 2), [make_job(0), make_job(1)]
    for job in jobs:
        executor.start(job)
        executor.wait(240)
    yield executor, jobs
    executor.close()


def test_ctrl_c_is_the_supervisors_alone(waiting: tuple[LocalExecutor, list[Job]]) -> None:
    executor, _ = waiting
    for process in psutil.Process().children(recursive=True):
        process.send_signal(signal.SIGINT)
    assert executor.wait(0.5) == []
    executor.answer(0, "go on")
    executor.answer(1, "go on")
    heard = executor.wait(240)
    heard += executor.wait(240) if len(heard) == 1 else []
    assert [event.record.step for event in heard if isinstance(event, Reported)] == [2, 2]


def test_a_trial_has_none_of_another_trials_pipes(
    waiting: tuple[LocalExecutor, list[Job]], process_of: Callable[[Job], int]
) -> None:
    def sockets(process: int) -> set[str]:
        links = {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
        return {link for link in links if link.startswith("socket:")}

    first, second = (sockets(process_of(job)) for job in waiting[1])
    assert first
    assert second
    assert not first & second


def test_a_trial_trains_with_its_slots_threads(make_job: Callable[..., Job]) -> None:
    executor, job = LocalExecutor([Slot("cpu", 2)]), make_job(0, {"training.epochs": 1})
    executor.start(job)
    while not any(isinstance(event, Ended) for event in executor.wait(240)):
        for number in executor.running:
            executor.answer(number, "go on")
    result = TrialFolder(job.folder).result()
    assert result is not None
    assert (result.environment["device"], result.environment["threads"]) == ("cpu", 2)


def test_the_forkserver_has_imported_all_that_a_trial_needs(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(0, {"self_training.rounds": 1})
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    code = """
import importlib, pickle, sys
from elta_tune.executors.local import PRELOAD
for name in PRELOAD:
    importlib.import_module(name)
known = set(sys.modules)
from elta_tune.records import TrialFolder
from elta_tune.trial import NoReporter, run_trial
job = pickle.load(open(sys.argv[1], "rb"))
run_trial(job.config, TrialFolder(job.folder), NoReporter(), cache=job.cache)
late = sorted(set(sys.modules) - known)
print([name for name in late if name.partition(".")[0] in ("elta_tune", "numpy", "pandas", "scipy", "timm", "torch")])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "job.pickle"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("devices", "workers", "cores", "expected"),
    [
        (["cpu"], None, 8, [("cpu", 8)]),
        (["cpu"], 3, 8, [("cpu", 2)] * 3),
        (["cpu"], 4, 2, [("cpu", 1)] * 4),
        (["cuda:0", "cuda:1"], None, 16, [("cuda:0", 8), ("cuda:1", 8)]),
        (["cuda:0", "cuda:1"], 3, 12, [("cuda:0", 4), ("cuda:1", 4), ("cuda:0", 4)]),
    ],
)
def test_slots_share_devices_and_cores(
    monkeypatch: pytest.MonkeyPatch,
    devices: list[str],
    workers: int | None,
    cores: int,
    expected: list[tuple[str, int]],
) -> None:
    monkeypatch.setattr("elta_tune.executors.available_cores", lambda: cores)
    assert plan_slots(devices, workers) == [Slot(*item) for item in expected]


@pytest.mark.parametrize(("devices", "workers"), [([], None), (["cpu"], 0)])
def test_there_has_to_be_a_slot(devices: list[str], workers: int | None) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        plan_slots(devices, workers)


def test_says_how_the_machine_is_shared() -> None:
    assert cores_text([Slot("cpu", 2)]) == "1 worker on cpu, 2 cores each"
    assert cores_text([Slot("cuda:0", 1), Slot("cuda:1", 1)]) == "2 workers on cuda:0, cuda:1, 1 core each"
