"""The supervisor, with real trainings in real processes that are stopped and killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from elta_tune.errors import StudyError
from elta_tune.executors import Ended, Job, Reported, Slot
from elta_tune.executors.local import LocalExecutor
from elta_tune.records import StudyFolder
from elta_tune.space.space import Budget
from elta_tune.studies.events import Event, Finished, Paused, Retried, Started, Stopping, interruptible
from elta_tune.studies.optuna import supervisor as supervising
from elta_tune.studies.optuna.study import OptunaStudy
from elta_tune.studies.optuna.supervisor import Supervisor
from elta_tune.studies.plan import StudyPlan

Table = Callable[[StudyFolder], list[tuple[Any, ...]]]
Database = Callable[[StudyFolder], list[dict[str, Any]]]
MakePlan = Callable[..., StudyPlan]
Run = Callable[..., list[Event]]

RATES: dict[str, Any] = {"optim.lr": {"type": "categorical", "choices": [3e-3, 2e-3, 1e-9, 1e30, 1e31, 1e32]}}
"""Rates that learn, one that does not, and some whose loss is soon not finite."""
SPACE: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "self_training.rounds": {"type": "int", "low": 0, "high": 1},
    "sharpening.threshold": {"type": "float", "low": 0.1, "high": 0.9, "when": "self_training.rounds > 0"},
}


def local(slots: int = 1) -> LocalExecutor:
    return LocalExecutor([Slot("cpu", 1)] * slots)


@pytest.fixture
def supervise(study_folder: StudyFolder, cache: Path) -> Callable[..., Supervisor]:
    """`supervise(plan, executor)`: a supervisor of the study."""

    def make(plan: StudyPlan, executor: LocalExecutor | None = None, folder: StudyFolder | None = None) -> Supervisor:
        return Supervisor(OptunaStudy(folder or study_folder, plan, cache), executor or local())

    return make


def kill(folder: StudyFolder, number: int) -> None:
    """Kills the process that a trial's log names last."""
    log = folder.trial(number).log_file.read_text()
    os.kill(int(re.findall(r"process (\d+) on", log)[-1]), signal.SIGKILL)


def kinds(events: Sequence[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def note(supervisor: Supervisor, events: list[Event]) -> None:
    """Runs a study; `events` has what happened also where it raises."""
    for event in supervisor.events():
        events.append(event)


def test_the_budget_counts_complete_and_pruned_trials(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], study_folder: StudyFolder, table: Table
) -> None:
    plan = make_plan_of(
        RATES,
        changes={"training.epochs": 3},
        enqueue=[{"optim.lr": rate} for rate in (2e-3, 1e30, 1e-9)],
        budget={"trials": 3},
        pruner={"name": "median", "startup_trials": 2, "warmup": 0.0},
    )
    supervisor = supervise(plan)
    events = list(supervisor.events())
    rows = table(study_folder)
    assert [row[2] for row in rows] == ["complete", "complete", "failed", "pruned"]
    assert [event.result.trial for event in kinds(events, Finished)] == [0, 1, 2, 3]
    assert "loss" in study_folder.results()[2].reason
    assert len(rows[3][5]) == 1  # after its first epoch
    assert supervisor.stopped is None
    assert list(supervise(plan).events()) == []


def test_two_workers_run_each_trial_exactly_once(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], study_folder: StudyFolder, database: Database
) -> None:
    plan = make_plan_of(SPACE, budget={"trials": 5}, sampler={"name": "random"})
    running: set[int] = set()
    most = 0
    for event in supervise(plan, local(2)).events():
        if isinstance(event, Started):
            assert event.job.number not in running
            running.add(event.job.number)
        if isinstance(event, Finished):
            running.remove(event.result.trial)
        most = max(most, len(running))
    assert most == 2
    rows, results = database(study_folder), study_folder.results()
    assert [(row["number"], row["state"]) for row in rows] == [(number, "COMPLETE") for number in range(5)]
    assert [result.trial for result in results] == list(range(5))
    assert [row["value"] for row in rows] == [result.value for result in results]
    for result in results:
        steps = [record.step for record in study_folder.trial(result.trial).epochs()]
        assert steps == list(range(1, len(steps) + 1))


class Deadly(LocalExecutor):
    """Its trials die before their first epoch, some so quietly that they leave no exit code."""

    def __init__(self, silent: bool) -> None:
        super().__init__([Slot("cpu", 1)])
        self.silent = silent

    def start(self, job: Job) -> None:
        super().start(job)
        self._running[job.number].watch.send("kill")

    def wait(self, timeout: float) -> list[Reported | Ended]:
        heard = super().wait(timeout)
        return [Ended(event.number, None) if self.silent and isinstance(event, Ended) else event for event in heard]


@pytest.mark.parametrize(("silent", "reason"), [(False, "SIGKILL"), (True, "without a result")])
def test_trial_that_dies_at_one_epoch_resumes_twice_then_fails(
    make_plan_of: MakePlan,
    supervise: Callable[..., Supervisor],
    study_folder: StudyFolder,
    database: Database,
    silent: bool,
    reason: str,
) -> None:
    events: list[Event] = []
    with pytest.raises(StudyError, match="3 trials in a row failed alike"):
        events.extend(supervise(make_plan_of(RATES, budget={"trials": 1}), Deadly(silent)).events())
    own = [event for event in events if getattr(event, "number", 0) == 0]
    assert len(kinds(own, Retried)) == 2
    starts = [event for event in kinds(events, Started) if event.job.number == 0]
    assert [event.resumed for event in starts] == [False, True, True]
    result = study_folder.results()[0]
    assert result.state == "failed"
    assert reason in result.reason
    assert result.reason.endswith("3 times")
    assert [row["state"] for row in database(study_folder)] == ["FAIL"] * 3


def test_a_trial_may_die_at_every_epoch_once(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], study_folder: StudyFolder
) -> None:
    events: list[Event] = []
    killed: set[int] = set()
    for event in supervise(make_plan_of(RATES, changes={"training.epochs": 40}, budget={"trials": 1})).events():
        events.append(event)
        # The next epoch may have been reported before the kill: it does not show that the process lives.
        step = event.record.step if isinstance(event, Reported) else 0
        if step % 2 and len(killed) < 5 and step not in killed:
            killed.add(step)
            kill(study_folder, 0)
    assert len(kinds(events, Retried)) == 5
    assert study_folder.results()[0].state == "complete"
    assert [record.step for record in study_folder.trial(0).epochs()] == list(range(1, 41))


def test_trials_that_fail_alike_stop_the_study_with_their_cause(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], study_folder: StudyFolder
) -> None:
    plan = make_plan_of(RATES, enqueue=[{"optim.lr": rate} for rate in (1e30, 1e31, 1e32)], budget={"trials": 9})
    with pytest.raises(StudyError) as refused:
        list(supervise(plan).events())
    reason = study_folder.results()[-1].reason
    assert refused.value.message == f"3 trials in a row failed alike: {reason}"
    assert str(study_folder.trial(3).log_file) in (refused.value.hint or "")
    assert [result.state for result in study_folder.results()] == ["complete", "failed", "failed", "failed"]


def test_machine_fault_stops_the_study_and_loses_no_epoch(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], study_folder: StudyFolder, database: Database
) -> None:
    plan = make_plan_of(SPACE, changes={"training.epochs": 40}, budget={"trials": 2}, pruner={"name": "none"})
    in_the_way = study_folder.trial(0).metrics_file
    in_the_way.mkdir(parents=True)  # a line of metrics can't be written then, as on a full disk
    events: list[Event] = []
    with pytest.raises(StudyError, match=r"trial 0 can't continue: .*metrics\.jsonl"):
        note(supervise(plan, local(2)), events)
    assert kinds(events, Stopping) == [Stopping("fault")]
    assert {event.number for event in kinds(events, Paused)} == {0, 1}  # the neighbour saved its epoch first
    assert [row["state"] for row in database(study_folder)] == ["RUNNING", "RUNNING"]
    assert study_folder.trial(1).last_file.exists()  # trial 0 was refused before its first epoch
    in_the_way.rmdir()
    assert [event.resumed for event in kinds(list(supervise(plan).events()), Started)] == [True, True]
    assert [row["state"] for row in database(study_folder)] == ["COMPLETE", "COMPLETE"]
    for _, trial in study_folder.trials():
        assert [record.step for record in trial.epochs()] == list(range(1, len(trial.epochs()) + 1))


def test_time_that_is_up_stops_after_the_running_epochs(
    make_plan_of: MakePlan,
    supervise: Callable[..., Supervisor],
    study_folder: StudyFolder,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = make_plan_of(RATES, changes={"training.epochs": 60}, budget={"trials": 1, "timeout": 0.01})
    supervisor, saved = supervise(plan), study_folder.trial(0).last_file
    with monkeypatch.context() as patch:  # a second is over once an epoch is saved, and none before
        patch.setattr(supervising, "time", SimpleNamespace(monotonic=lambda: float(saved.exists())))
        events = list(supervisor.events())
    assert kinds(events, Stopping) == [Stopping("timeout")]
    assert kinds(events, Paused) == [Paused(0)]
    assert supervisor.stopped == "timeout"
    done = len(study_folder.trial(0).epochs())
    assert 1 <= done < 60
    assert study_folder.trial(0).last_file.exists()
    spent = supervise(plan).study.seconds_run
    assert spent > 0.01
    assert [type(event) for event in supervise(plan).events()] == [Stopping]  # all its runs together are over it
    longer = supervise(plan.with_budget(Budget(trials=1, timeout=600)))
    assert kinds(list(longer.events()), Started)[0].resumed
    assert [record.step for record in study_folder.trial(0).epochs()] == list(range(1, 61))
    assert [row["state"] for row in database(study_folder)] == ["COMPLETE"]
    assert longer.study.seconds_run > spent


def interrupted_after(supervisor: Supervisor, reports: int) -> Iterator[Event]:
    """A supervisor's events, which is asked to stop after some reports."""
    for event in supervisor.events():
        yield event
        if isinstance(event, Reported):
            reports -= 1
            supervisor.interrupted |= reports == 0


def test_an_interrupted_study_gives_the_table_of_an_unbroken_one(
    make_plan_of: MakePlan,
    supervise: Callable[..., Supervisor],
    study_folder: StudyFolder,
    tmp_path: Path,
    table: Table,
    database: Database,
) -> None:
    plan = make_plan_of(
        SPACE,
        changes={"training.epochs": 3},
        budget={"trials": 5},
        sampler={"name": "tpe", "startup_trials": 2},
        pruner={"name": "median", "startup_trials": 2, "warmup": 0.5},
    )
    whole = StudyFolder(tmp_path / "whole")
    whole.path.mkdir()
    list(supervise(plan, folder=whole).events())
    starts = 0
    while len(study_folder.results()) < 5:
        events = list(interrupted_after(supervise(plan), reports=2))
        for event in kinds(events, Paused):
            assert database(study_folder)[event.number]["state"] == "RUNNING"
            assert study_folder.trial(event.number).last_file.exists()
        starts += 1
    assert starts > 5
    assert table(study_folder) == table(whole)
    assert database(study_folder) == database(whole)
    assert {row["state"] for row in database(study_folder)} <= {"COMPLETE", "PRUNED"}
    assert len({str(result.params) for result in study_folder.results()}) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_stop_and_a_second_one_stops(
    make_plan_of: MakePlan, supervise: Callable[..., Supervisor], number: int
) -> None:
    supervisor, before = supervise(make_plan_of(SPACE)), signal.getsignal(number)
    with interruptible(supervisor):
        os.kill(os.getpid(), number)
        assert supervisor.interrupted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
