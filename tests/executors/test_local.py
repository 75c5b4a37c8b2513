"""The local executor: slots share devices and cores; a trial's process ends with its supervisor's, not by Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from elta_tune.errors import ConfigError
from elta_tune.executors import Ended, Heard, Job, Reported, Slot, cores_text, plan_slots
from elta_tune.executors.local import LocalExecutor, running_server
from elta_tune.records import TrialFolder

SUPERVISOR = """
import pickle, sys
from elta_tune.executors import Slot
from elta_tune.executors.local import LocalExecutor

if __name__ == "__main__":
    executor = LocalExecutor([Slot("cpu", 1)] * 2)
    for job in pickle.load(open(sys.argv[1], "rb")):
        executor.start(job)
        print("reported", executor.wait(240)[0].record.step, flush=True)
    executor.answer(1, "go on")
    while executor.running:
        print("heard", executor.wait(240), flush=True)
"""
"""Trial 0 waits for its verdict, trial 1 trains, and neither will get an answer."""


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; a zombie, which may have no parent to reap it here, is dead."""
    return [item for item in processes if item.is_running() and item.status() != psutil.STATUS_ZOMBIE]


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    deadline = time.monotonic() + 20
    while alive(processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive(processes)


def start_supervisor(jobs: list[Job], folder: Path, **options: Any) -> subprocess.Popen[str]:
    script, pickled = folder / "supervisor.py", folder / "jobs.pickle"
    script.write_text(SUPERVISOR)
    pickled.write_bytes(pickle.dumps(jobs))
    return subprocess.Popen([sys.executable, "-P", script, pickled], stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_nothing_is_left_when_the_supervisor_is_killed(
    make_job: Callable[..., Job], tmp_path: Path, is_stopped: bool
) -> None:
    jobs = [make_job(0), make_job(1, {"training.epochs": 10_000})]
    with start_supervisor(jobs, tmp_path) as supervisor:
        assert supervisor.stdout is not None
        assert [supervisor.stdout.readline() for _ in range(2)] == ["reported 1\n"] * 2
        (server,) = psutil.Process(supervisor.pid).children()
        children = [server, *server.children()]
        if is_stopped:
            server.suspend()
        supervisor.kill()
    assert len(children) == 3
    assert wait_until_gone(children) == []


@pytest.mark.parametrize("phase", ["at its start", "while it trains", "while it waits"])
def test_a_trial_ends_with_its_server_and_is_resumed(
    make_job: Callable[..., Job], process_of: Callable[[Job], int], phase: str
) -> None:
    executor, job = LocalExecutor([Slot("cpu", 1)]), make_job(0, {"training.epochs": 3})
    executor.start(job)
    if phase != "at its start":
        assert isinstance(executor.wait(240)[0], Reported)
    if phase == "while it trains":
        executor.answer(0, "go on")
    server = running_server()
    children = psutil.Process(server.process.pid).children()
    server.process.kill()
    heard = executor.wait(240)
    while isinstance(heard[0], Reported):  # the epoch that it had just finished
        heard = executor.wait(240)
    assert heard == [Ended(0, "the process that starts trials was ended")]
    assert wait_until_gone(children) == []
    executor.start(job)
    steps = []
    while executor.running:
        for event in executor.wait(240):
            if isinstance(event, Reported):
                steps.append(event.record.step)
                executor.answer(0, "go on")
    assert steps[-1] == 3
    assert TrialFolder(job.folder).result() is not None


def test_close_ends_trials_also_without_an_answer(
    waiting: tuple[LocalExecutor, list[Job]], process_of: Callable[[Job], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elta_tune.executors.local.PATIENCE", 0.01)
    executor, jobs = waiting
    trials = [psutil.Process(process_of(job)) for job in jobs]
    psutil.Process(running_server().process.pid).suspend()
    executor.close()
    assert wait_until_gone(trials) == []


def test_an_odd_environment_changes_no_trial(make_job: Callable[..., Job], tmp_path: Path) -> None:
    """Modules in the working directory, a temporary folder too long for sockets, no standard streams, no UTF-8."""
    traps, temporary = tmp_path / "traps", tmp_path / ("long" * 40)
    traps.mkdir()
    temporary.mkdir()
    for name in ("queue", "json", "timm", "torch", "numpy", "elta_tune"):
        (traps / f"{name}.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')\nraise SystemExit(9)\n")
    odd = {"TMPDIR": str(temporary), "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONINSPECT": "1"}
    odd |= {"PYTHONSTARTUP": str(traps / "json.py"), "PYTHONWARNINGS": "error"}
    with start_supervisor(
        [make_job(0), make_job(1)],
        tmp_path,
        cwd=traps,
        env={**os.environ, **odd},
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: (os.close(0), os.close(2)),
    ) as supervisor:
        assert supervisor.stdout is not None
        assert [supervisor.stdout.readline() for _ in range(2)] == ["reported 1\n"] * 2
        supervisor.kill()
    assert not (tmp_path / "trapped").exists()


def test_trials_run_for_a_daemonic_process_too(make_job: Callable[..., Job]) -> None:
    """Such a worker of a pool may have no children of multiprocessing's own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(_run_alone, (make_job(0, {"training.epochs": 1}),)) == [Ended(0, None)]


def _run_alone(job: Job) -> list[Heard]:
    executor = LocalExecutor([Slot("cpu", 1)])
    executor.start(job)
    (event,) = executor.wait(240)
    executor.answer(event.number, "go on")
    return executor.wait(240)


@pytest.fixture
def waiting(make_job: Callable[..., Job]) -> Iterator[tuple[LocalExecutor, list[Job]]]:
    """Two trials that wait for their verdict after an epoch."""
    executor, jobs = LocalExecutor([Slot("cpu", 1)] * 2), [make_job(0), make_job(1)]
    for job in jobs:
        executor.start(job)
        executor.wait(240)
    yield executor, jobs
    executor.close()


def test_ctrl_c_reaches_only_the_supervisor(waiting: tuple[LocalExecutor, list[Job]]) -> None:
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
    assert (result.environment.device, result.environment.threads) == ("cpu", 2)


def test_the_forkserver_has_imported_all_that_a_trial_needs(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(0, {"self_training.rounds": 1})
    (tmp_path / "job.pickle").write_bytes(pickle.dumps(job))
    code = """
import importlib, pickle, sys
from elta_tune.executors.server import PRELOAD
for name in PRELOAD:
    importlib.import_module(name)
known = set(sys.modules)
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.records import TrialFolder
from elta_tune.trial import NoReporter, run_trial
job = pickle.load(open(sys.argv[1], "rb"))
run_trial(job.config, TrialFolder(job.folder), NoReporter(), cache=ImageCache(job.cache))
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
def test_slot_is_required(devices: list[str], workers: int | None) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        plan_slots(devices, workers)


def test_plan_describes_how_the_machine_is_shared() -> None:
    assert cores_text([Slot("cpu", 2)]) == "1 worker on cpu, 2 cores each"
    assert cores_text([Slot("cuda:0", 1), Slot("cuda:1", 1)]) == "2 workers on cuda:0, cuda:1, 1 core each"
