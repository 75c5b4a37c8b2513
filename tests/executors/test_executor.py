"""What every executor must do. A new one is a line in EXECUTORS."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from elta_tune.executors import Ended, Executor, Halted, Job, Reported, Slot
from elta_tune.executors.inline import InlineExecutor
from elta_tune.executors.local import LocalExecutor
from elta_tune.records import TrialFolder

EXECUTORS: dict[str, Callable[[int], Executor]] = {
    "local": lambda slots: LocalExecutor([Slot("cpu", 1)] * slots),
    "inline": lambda slots: InlineExecutor([Slot("cpu", 1)] * slots),
}
PATIENCE = 240.0
"""Seconds after which what should happen has not."""

Make = Callable[[int], Executor]
MakeJob = Callable[..., Job]


def next_event(executor: Executor) -> Reported | Ended:
    """The next thing that happens, where one thing can."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if events := executor.wait(0.2):
            assert len(events) == 1
            return events[0]
    raise AssertionError("nothing happened")


def run_out(executor: Executor) -> list[Reported | Ended]:
    """Answers "go on" until nothing runs."""
    heard: list[Reported | Ended] = []
    deadline = time.monotonic() + PATIENCE
    while executor.running and time.monotonic() < deadline:
        for event in executor.wait(0.2):
            heard.append(event)
            if isinstance(event, Reported):
                executor.answer(event.number, "go on")
    return heard


def steps(events: Sequence[Reported | Ended], number: int) -> list[int]:
    return [event.record.step for event in events if isinstance(event, Reported) and event.number == number]


class Exits:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (3,)


@pytest.fixture(params=EXECUTORS)
def make_executor(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Executor] = []

    def make(slots: int) -> Executor:
        made.append(EXECUTORS[request.param](slots))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


class TestExecutor:
    """What every executor does."""

    def test_epochs_are_reported_as_recorded(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(4)
        executor.start(job)
        heard = [event for event in run_out(executor) if isinstance(event, Reported)]
        recorded = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
        assert [event.number for event in heard] == [4, 4]
        for event, line in zip(heard, recorded, strict=True):
            assert event.record.to_dict() == line

    def test_waits_for_the_verdict_and_prunes(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(0, {"training.epochs": 5})
        executor.start(job)
        assert isinstance(next_event(executor), Reported)
        assert executor.wait(1.0) == []  # the next epoch takes a tenth of that, but waits to be allowed
        executor.answer(0, "prune")
        assert next_event(executor) == Ended(0, None)
        result = TrialFolder(job.folder).result()
        assert result is not None
        assert (result.state, result.best_step) == ("pruned", 1)

    def test_stopped_trial_resumes_after_its_last_epoch(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(0, {"training.epochs": 3})
        executor.start(job)
        next_event(executor)
        executor.answer(0, "stop")
        assert next_event(executor) == Ended(0, None)
        assert TrialFolder(job.folder).result() is None
        executor.start(job)
        assert steps(run_out(executor), 0) == [1, 2, 3]  # earlier epochs are reported again
        assert [record.step for record in TrialFolder(job.folder).epochs()] == [1, 2, 3]

    def test_a_folder_that_is_unusable_halts_the_trial(
        self, make_executor: Make, make_job: MakeJob, tmp_path: Path
    ) -> None:
        executor = make_executor(1)
        (tmp_path / "file").write_text("where the folder should be")
        executor.start(make_job(0, folder=tmp_path / "file" / "0000"))
        event = next_event(executor)
        assert isinstance(event, Halted)
        assert "Not a directory" in event.reason

    def test_a_refusal_fails_the_trial_in_its_own_words(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(0, {"data.val": "nowhere.csv"})
        executor.start(job)
        assert next_event(executor) == Ended(0, None)
        result = TrialFolder(job.folder).result()
        assert result is not None
        assert "nowhere.csv" in result.reason

    def test_another_configuration_halts_and_loses_nothing(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(0)
        folder = TrialFolder(job.folder)
        folder.create(job.config.replace({"seed": 7}))
        before = folder.config_file.read_bytes()
        executor.start(job)
        event = next_event(executor)
        assert isinstance(event, Halted)
        assert "another configuration was trained here: seed: 7 → 0" in event.reason
        assert folder.config_file.read_bytes() == before
        assert not folder.result_file.exists()

    def test_an_unreadable_folder_halts_and_loses_nothing(self, make_executor: Make, make_job: MakeJob) -> None:
        executor, job = make_executor(1), make_job(0)
        metrics = job.folder / "metrics.jsonl"
        metrics.mkdir(parents=True)
        executor.start(job)
        event = next_event(executor)
        assert isinstance(event, Halted)
        assert event.reason == f"{metrics}: Is a directory"
        assert metrics.is_dir() and not (job.folder / "result.json").exists()

    def test_waits_in_vain_no_longer_than_asked(self, make_executor: Make) -> None:
        assert make_executor(1).wait(0.01) == []


@pytest.mark.parametrize("make_executor", ["local"], indirect=True)
class TestProcesses:
    """What those do that start processes: several trials at a time, none of which harms another or this process."""

    def test_runs_more_trials_than_it_has_slots(self, make_executor: Make, make_job: MakeJob) -> None:
        executor = make_executor(2)
        jobs = [make_job(number, {"training.epochs": 1 + number}) for number in range(3)]
        for job in jobs[:2]:
            assert executor.has_room
            executor.start(job)
        assert not executor.has_room
        assert sorted(executor.running) == [0, 1]
        heard: list[Reported | Ended] = []
        while not executor.has_room:
            for event in executor.wait(PATIENCE):
                heard.append(event)
                if isinstance(event, Reported):
                    executor.answer(event.number, "go on")
        executor.start(jobs[2])
        heard += run_out(executor)
        assert [steps(heard, number) for number in range(3)] == [[1], [1, 2], [1, 2, 3]]
        assert sorted(event.number for event in heard if isinstance(event, Ended)) == [0, 1, 2]
        assert all(event.fault is None for event in heard if isinstance(event, Ended))
        for job in jobs:
            result = TrialFolder(job.folder).result()
            assert result is not None
            assert (result.state, result.trial, result.params) == ("complete", job.number, job.params)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGRTMIN + 3])
    def test_signal_that_ended_a_trial_is_named(
        self, make_executor: Make, make_job: MakeJob, process_of: Callable[[Job], int], number: int
    ) -> None:
        executor, job = make_executor(1), make_job()
        executor.start(job)
        next_event(executor)
        os.kill(process_of(job), number)
        ended = next_event(executor)
        name = {item.value: item.name for item in signal.Signals}.get(number, f"signal {number}")
        assert isinstance(ended, Ended)
        assert name in (ended.fault or "")
        assert TrialFolder(job.folder).result() is None
        assert (executor.has_room, list(executor.running)) == (True, [])

    def test_exit_code_of_a_trial_is_named(self, make_executor: Make, make_job: MakeJob) -> None:
        executor = make_executor(1)
        executor.start(replace(make_job(), params={"training.epochs": Exits()}))
        assert next_event(executor) == Ended(0, "the process ended with exit code 3")

    def test_a_fault_of_the_program_is_logged_and_fails_the_trial(self, make_executor: Make, make_job: MakeJob) -> None:
        job = make_job(7)
        training = job.config.training.model_copy(update={"precision": "float99"})  # no check lets that through
        job = replace(job, config=job.config.model_copy(update={"training": training}))
        executor = make_executor(1)
        executor.start(job)
        assert next_event(executor) == Ended(7, None)
        result = TrialFolder(job.folder).result()
        assert result is not None
        assert (result.trial, result.state, result.reason) == (
            7,
            "failed",
            "AttributeError: module 'torch' has no attribute 'float99'",
        )
        assert "Traceback (most recent call last)" in (job.folder / "log.txt").read_text()

    @pytest.mark.parametrize("victim", [0, 1])
    def test_hears_of_a_death_while_another_trial_lives(
        self, make_executor: Make, make_job: MakeJob, process_of: Callable[[Job], int], victim: int
    ) -> None:
        """It would not if the other had inherited the dead one's end of its pipe."""
        executor, jobs = make_executor(2), [make_job(0), make_job(1)]
        for job in jobs:
            executor.start(job)
            assert isinstance(next_event(executor), Reported)
        os.kill(process_of(jobs[victim]), signal.SIGKILL)
        executor.answer(victim, "go on")  # the process is gone, which does no harm
        ended = next_event(executor)
        assert (type(ended), ended.number) == (Ended, victim)
        executor.answer(1 - victim, "go on")
        assert steps(run_out(executor), 1 - victim) == [2]

    def test_close_ends_running_trials(
        self, make_executor: Make, make_job: MakeJob, process_of: Callable[[Job], int]
    ) -> None:
        executor, jobs = make_executor(2), [make_job(0), make_job(1)]
        for job in jobs:
            executor.start(job)
            next_event(executor)
        processes = [process_of(job) for job in jobs]
        assert all(psutil.pid_exists(process) for process in processes)
        executor.close()
        assert not any(psutil.pid_exists(process) for process in processes)
        assert list(executor.running) == []
        assert all(TrialFolder(job.folder).result() is None for job in jobs)
