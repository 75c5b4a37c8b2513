"""The Optuna back end: what it asks for, in which order, the same after any interruption; what it records."""

from __future__ import annotations

import itertools
import math
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from curve_executor import CONDITIONAL, CurveExecutor, Database, MakePlan, Table, params, rising, run

from elta_tune.errors import StudyError
from elta_tune.executors import Ended, Job, Reported
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.space.space import Budget
from elta_tune.studies.completion import is_finished, trials_wanted
from elta_tune.studies.optuna.study import OptunaStudy
from elta_tune.studies.optuna.supervisor import Supervisor
from elta_tune.studies.plan import StudyPlan
from elta_tune.trial import record_failure


@dataclass
class FailingExecutor(CurveExecutor):
    """Fails each trial, for reasons that alternate."""

    def start(self, job: Job) -> None:
        self._jobs[job.number] = job
        TrialFolder(job.folder).create(job.config)
        reason = ("out of memory", "the loss became nan")[job.number % 2]
        record_failure(TrialFolder(job.folder), reason, job.number, job.params)
        self._ready.append(Ended(job.number, None))


def test_a_study_that_only_fails_ends_whatever_the_reasons(make_plan_of: MakePlan, study_folder: StudyFolder) -> None:
    plan = make_plan_of({"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2}}, budget={"trials": 5})
    executor = FailingExecutor(rising)
    with pytest.raises(StudyError, match="10 trials in a row failed: "):
        list(Supervisor(OptunaStudy(study_folder, plan, Path("cache")), executor).events())


def test_the_recipe_comes_first_then_the_guesses(
    make_plan_of: MakePlan, study_folder: StudyFolder, table: Table
) -> None:
    guesses = [
        {"optim.lr": 0.05},
        {},  # the recipe once more
        {"self_training.rounds": 1, "sharpening.temperature": 4.0},
        {"optim.lr": 0.05},
    ]
    run(study_folder, make_plan_of(CONDITIONAL, enqueue=guesses, budget={"trials": 4}))
    own = {"optim.lr": 3e-3, "mixup.alpha": None, "self_training.rounds": 0}
    assert params(table(study_folder))[:3] == [
        own,
        own | {"optim.lr": 0.05},
        own | {"self_training.rounds": 1, "sharpening.temperature": 4.0},
    ]
    assert len(params(table(study_folder))) == 4


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "qmc"])
def test_samplers_keep_to_the_space(make_plan_of: MakePlan, study_folder: StudyFolder, table: Table, name: str) -> None:
    sampler = {"name": name} | ({"startup_trials": 4} if name in ("tpe", "gp") else {})
    run(study_folder, make_plan_of(CONDITIONAL, sampler=sampler, budget={"trials": 12}))
    found = params(table(study_folder))
    for point in found:
        assert 1e-4 <= point["optim.lr"] <= 1e-1
        assert point["mixup.alpha"] in (0.5, 1.0, None)
        assert point["self_training.rounds"] in (0, 1, 2)
        assert ("sharpening.temperature" in point) == (point["self_training.rounds"] > 0)
    rates = {point["optim.lr"] for point in found}
    temperatures = [point["sharpening.temperature"] for point in found if "sharpening.temperature" in point]
    assert len(rates) >= 11  # TPE and GP may go back to a bound
    assert len(temperatures) >= 3
    assert len(set(temperatures)) == len(temperatures)
    assert {point["mixup.alpha"] for point in found} == {0.5, 1.0, None}


def test_tpe_learns_within_a_short_budget(make_plan_of: MakePlan, study_folder: StudyFolder, table: Table) -> None:
    """The curve is best at 0.01: the trials after the start-up crowd there, closer than random ones would."""
    plan = make_plan_of({"optim.lr": CONDITIONAL["optim.lr"]}, budget={"trials": 20})
    run(study_folder, plan)
    distances = [abs(math.log10(point["optim.lr"]) + 2) for point in params(table(study_folder))]
    assert sum(distances[-8:]) / 8 < 0.5  # 0.83 is what random trials would have


def test_a_qmc_study_covers_the_space_evenly(make_plan_of: MakePlan, study_folder: StudyFolder, table: Table) -> None:
    plan = make_plan_of({"optim.lr": CONDITIONAL["optim.lr"]}, sampler={"name": "qmc"}, budget={"trials": 16})
    run(study_folder, plan)
    places = [(math.log10(point["optim.lr"]) + 4) / 3 for point in params(table(study_folder))]
    # Of the points 8…15 of a scrambled Sobol sequence each eighth of the range holds one.
    assert sorted(int(8 * place) for place in places[8:]) == list(range(8))


def test_the_seed_decides_the_trials(make_plan_of: MakePlan, tmp_path: Path, table: Table) -> None:
    tables = []
    for number, seed in enumerate((0, 0, 1)):
        folder = StudyFolder(tmp_path / str(number))
        folder.path.mkdir()
        run(folder, make_plan_of(CONDITIONAL, changes={"seed": seed}, budget={"trials": 8}))
        tables.append(table(folder))
    assert tables[0] == tables[1]
    assert params(tables[0])[0] == params(tables[2])[0]
    assert all(one != other for one, other in zip(params(tables[0])[1:], params(tables[2])[1:], strict=True))


class Killed(BaseException):
    """Stands for the end of the process."""


def run_until_commit(folder: StudyFolder, plan: StudyPlan, count: int) -> bool:
    """Runs a study, but dies before the `count`-th commit from now on; False if it has fewer."""
    commits = itertools.count(1)

    def kill(_: Any) -> None:
        if next(commits) == count:
            raise Killed

    study = OptunaStudy(folder, plan, Path("cache"))
    engine = study._study._storage._backend.engine
    sqlalchemy.event.listen(engine, "commit", kill)
    try:
        for _ in Supervisor(study, CurveExecutor(rising)).events():
            pass
        return False
    except Killed:
        return True
    finally:
        sqlalchemy.event.remove(engine, "commit", kill)
        study._study._storage.remove_session()
        engine.dispose()


@pytest.mark.parametrize("name", ["random", "qmc"])
def test_study_resumes_the_same_from_any_cut(
    make_plan_of: MakePlan, tmp_path: Path, table: Table, database: Database, name: str
) -> None:
    short, long = (
        make_plan_of(CONDITIONAL, changes={"seed": 1}, budget={"trials": trials}, sampler={"name": name})
        for trials in (3, 4)
    )
    start, whole = StudyFolder(tmp_path / "start" / "study"), StudyFolder(tmp_path / "whole" / "study")
    start.path.mkdir(parents=True)
    run(start, short)
    shutil.copytree(start.path, whole.path)
    run(whole, long)
    assert "sharpening.temperature" in params(table(whole))[3]  # which is drawn by itself
    cuts = 0
    for count in itertools.count(1):
        folder = StudyFolder(tmp_path / f"cut-{count}" / "study")
        shutil.copytree(start.path, folder.path)
        if not run_until_commit(folder, long, count):
            break
        run(folder, long)
        assert table(folder) == table(whole)
        assert database(folder) == database(whole)
        cuts += 1
    assert cuts > 10  # a trial is asked for, draws, reports and gets its result


def test_reported_values_match_the_folders(
    make_plan_of: MakePlan, study_folder: StudyFolder, database: Database
) -> None:
    plan = make_plan_of(
        CONDITIONAL, budget={"trials": 10}, pruner={"name": "median", "startup_trials": 3, "warmup": 0.5}
    )
    run(study_folder, plan, slots=2)
    rows, results = database(study_folder), study_folder.results()
    assert [row["number"] for row in rows] == [result.trial for result in results] == list(range(10))
    assert [row["state"].lower() for row in rows] == [
        {"complete": "complete", "pruned": "pruned"}[result.state] for result in results
    ]
    assert {row["state"] for row in rows} == {"COMPLETE", "PRUNED"}
    for row, result in zip(rows, results, strict=True):
        if result.state == "complete":
            assert row["value"] == result.value
        assert row["attributes"] == result.metrics
        epochs = study_folder.trial(result.trial).epochs()
        assert row["steps"] == {record.step: record.values["srcc"] for record in epochs}


def test_unreported_result_is_reported(make_plan_of: MakePlan, study_folder: StudyFolder, database: Database) -> None:
    plan = make_plan_of(CONDITIONAL, budget={"trials": 2})
    study = OptunaStudy(study_folder, plan, Path("cache"))
    executor = CurveExecutor(rising)
    job = study.ask()
    assert job is not None
    executor.start(job)
    while executor.running:  # the study does not see it
        for event in executor.wait(0):
            if isinstance(event, Reported):
                executor.answer(event.number, "go on")
    assert [row["state"] for row in database(study_folder)] == ["RUNNING"]
    left = study_folder.trial(0).last_file
    left.touch()  # a kill between the result and the cleaning up
    assert run(study_folder, plan).started == [(1, 1)]
    assert not left.exists()
    assert [row["state"] for row in database(study_folder)] == ["COMPLETE", "COMPLETE"]
    assert database(study_folder)[0]["steps"] == {1: rising(job, 1), 2: rising(job, 2)}


def test_the_median_pruner_spares_trial_0(make_plan_of: MakePlan, study_folder: StudyFolder, table: Table) -> None:
    plan = make_plan_of(
        {"optim.lr": {"type": "categorical", "choices": [3e-3, 1e-3, 1e-4, 1e-2]}},
        changes={"training.epochs": 6},
        enqueue=[{"optim.lr": rate} for rate in (1e-3, 1e-2)],
        budget={"trials": 10},
        pruner={"name": "median", "startup_trials": 2, "warmup": 0.5},
    )
    hopeless = (3e-3, 1e-4)  # the recipe's own, and one more
    run(study_folder, plan, lambda job, step: -0.5 if job.config.optim.lr in hopeless else 0.5 + 0.01 * step)
    rows = table(study_folder)
    assert rows[0][2] == "complete"
    later = {row[1]["optim.lr"]: (row[2], len(row[5])) for row in rows[3:]}
    assert {rate: state for rate, state in later.items() if rate in hopeless}
    for rate, outcome in later.items():
        assert outcome == (("pruned", 3) if rate in hopeless else ("complete", 6))


@pytest.mark.parametrize("name", ["successive_halving", "hyperband"])
def test_other_pruners_prune_too(make_plan_of: MakePlan, study_folder: StudyFolder, table: Table, name: str) -> None:
    plan = make_plan_of(
        CONDITIONAL, changes={"training.epochs": 8}, budget={"trials": 20}, pruner={"name": name, "warmup": 0.125}
    )
    run(study_folder, plan)
    states = [row[2] for row in table(study_folder)]
    assert set(states) == {"complete", "pruned"}


def test_nan_is_reported_and_fails_the_trial(
    make_plan_of: MakePlan, study_folder: StudyFolder, table: Table, database: Database
) -> None:
    plan = make_plan_of(
        {"optim.lr": CONDITIONAL["optim.lr"]},
        enqueue=[{"optim.lr": 0.05}, {"optim.lr": 0.06}, {"optim.lr": 0.07}],
        budget={"trials": 4},
        pruner={"name": "median", "startup_trials": 2, "warmup": 0.0},
    )
    run(study_folder, plan, lambda job, step: math.nan if job.config.optim.lr == 0.07 else 0.5)
    assert [row[2] for row in table(study_folder)] == ["complete"] * 3 + ["failed", "complete"]
    row = database(study_folder)[3]
    assert (row["state"], row["value"]) == ("FAIL", None)
    assert row["steps"] == {1: None}
    assert row["attributes"]["reason"] == "not a number"


def test_a_grid_runs_each_point_once_and_is_finished(
    make_plan_of: MakePlan, study_folder: StudyFolder, table: Table
) -> None:
    axes = {"optim.lr": [1e-4, 3e-3], "self_training.rounds": [0, 1], "sharpening.temperature": [1.0, 2.0]}
    parameters = {
        name: {"type": "categorical", "choices": choices}
        | ({"when": "self_training.rounds > 0"} if name.startswith("sharp") else {})
        for name, choices in axes.items()
    }
    plan = make_plan_of(parameters, sampler={"name": "grid"}, budget={"trials": 50})
    expected = {
        tuple(
            (name, value) for name, value in zip(axes, point, strict=True) if point[1] or not name.startswith("sharp")
        )
        for point in itertools.product(*axes.values())
    }
    assert len(expected) == 6
    assert trials_wanted(plan) == 6
    assert not is_finished(study_folder, plan)
    run(study_folder, plan)
    found = [tuple(point.items()) for point in params(table(study_folder))]
    assert found[0] == (("optim.lr", 3e-3), ("self_training.rounds", 0))
    assert len(found) == 6
    assert set(found) == expected
    assert is_finished(study_folder, plan)
    assert run(study_folder, plan).started == []


def test_a_large_grid_starts_at_once(make_plan_of: MakePlan, study_folder: StudyFolder, database: Database) -> None:
    """Its points are written as they are run: the published grid has 1,344, and each write takes its time."""
    plan = make_plan_of(
        {"optim.lr": {"type": "categorical", "choices": [3e-3, *(1e-5 * (1 + k) for k in range(5000))]}},
        sampler={"name": "grid"},
        budget={"trials": 3},
    )
    run(study_folder, plan)
    assert [row["state"] for row in database(study_folder)] == ["COMPLETE"] * 3


def test_a_folder_may_have_any_name(make_plan_of: MakePlan, tmp_path: Path, database: Database) -> None:
    folder = StudyFolder(tmp_path / "a b?c=%20#é")
    folder.path.mkdir()
    run(folder, make_plan_of(CONDITIONAL, budget={"trials": 1}))
    assert len(database(folder)) == 1


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "grid"])
@pytest.mark.parametrize("slots", [1, 2])
def test_no_point_is_trained_twice(
    make_plan_of: MakePlan, study_folder: StudyFolder, table: Table, name: str, slots: int
) -> None:
    plan = make_plan_of(
        {
            "optim.lr": {"type": "categorical", "choices": [3e-3, 1e-3, 1e-2, 3e-2]},
            "self_training.rounds": {"type": "int", "low": 0, "high": 1},
        },
        sampler={"name": name},
        budget={"trials": 20},
    )
    run(study_folder, plan.with_budget(Budget(trials=5)), slots=slots)
    run(study_folder, plan, slots=slots)  # ends when the space is used up
    points = [tuple(point.values()) for point in params(table(study_folder))]
    assert sorted(points) == sorted(itertools.product([3e-3, 1e-3, 1e-2, 3e-2], [0, 1]))
    assert trials_wanted(plan) == 8 and is_finished(study_folder, plan)


@pytest.fixture
def half(make_plan_of: MakePlan, tmp_path: Path) -> tuple[StudyFolder, StudyPlan, StudyPlan]:
    """A study of 6 trials that ran with two workers, its plan, and the plan with 9 trials."""
    folder = StudyFolder(tmp_path / "one")
    folder.path.mkdir()
    plan = make_plan_of(CONDITIONAL, budget={"trials": 6}, sampler={"name": "tpe", "startup_trials": 3})
    run(folder, plan, slots=2)
    return folder, plan, plan.with_budget(Budget(trials=9))


def test_moved_study_continues(
    half: tuple[StudyFolder, StudyPlan, StudyPlan], tmp_path: Path, table: Table, database: Database
) -> None:
    folder, _, longer = half
    moved = StudyFolder(tmp_path / "two")
    shutil.copytree(folder.path, moved.path)
    run(folder, longer)
    assert [number for number, _ in run(moved, longer).started] == [6, 7, 8]
    assert table(moved) == table(folder)
    assert database(moved) == database(folder)


@pytest.mark.parametrize("lost", ["all", "1", "5", "0, 1, 2"])
def test_lost_rows_are_restored_from_the_folders(
    half: tuple[StudyFolder, StudyPlan, StudyPlan], tmp_path: Path, table: Table, database: Database, lost: str
) -> None:
    folder, plan, longer = half
    damaged = StudyFolder(tmp_path / "damaged")
    shutil.copytree(folder.path, damaged.path)
    if lost == "all":
        damaged.database.unlink()
    else:
        with sqlite3.connect(damaged.database) as connection:
            connection.execute(f"delete from trials where number in ({lost})")
        connection.close()
    before = table(damaged)
    run(damaged, plan)
    assert table(damaged) == before and database(damaged) == database(folder)
    run(folder, longer)
    assert [number for number, _ in run(damaged, longer).started] == [6, 7, 8]
    assert table(damaged) == table(folder)


def test_only_a_missing_trial_is_proposed_again(
    half: tuple[StudyFolder, StudyPlan, StudyPlan], database: Database
) -> None:
    folder, plan, _ = half
    folder.database.unlink()
    shutil.rmtree(folder.trial(2).path)
    assert [number for number, _ in run(folder, plan).started] == [2]
    assert {row["state"] for row in database(folder)} == {"COMPLETE"}


DAMAGE = {
    "state": "update trials set state = 'EXPLODED' where number = 1",
    "distribution": "update trial_params set distribution_json = 'null' where param_id = 1",
    "class": """update trial_params set distribution_json = '{"name": "X", "attributes": {}}' where param_id = 1""",
    "attribute": "update trial_user_attributes set value_json = 'x' where trial_user_attribute_id = 1",
    "version": "update alembic_version set version_num = 'v9'",
    "table": "drop table trial_params",
    "second": "insert into studies (study_name) values ('other')",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_unreadable_database_is_named(half: tuple[StudyFolder, StudyPlan, StudyPlan], damage: str) -> None:
    folder, plan, _ = half
    with sqlite3.connect(folder.database) as connection:
        connection.execute(DAMAGE[damage])
    connection.close()
    if damage == "table":  # is made again, from the folders
        assert run(folder, plan).started == []
        return
    with pytest.raises(StudyError, match=r"study\.db: ") as caught:
        OptunaStudy(folder, plan, Path("cache"))
    assert "elta-tune repair one" in (caught.value.hint or "")


@pytest.mark.parametrize("table_name", ["trial_params", "trial_intermediate_values", "trial_values"])
def test_lost_table_halts_the_study_which_then_continues(
    half: tuple[StudyFolder, StudyPlan, StudyPlan], tmp_path: Path, table: Table, table_name: str
) -> None:
    folder, _, longer = half
    broken = StudyFolder(tmp_path / "broken")
    shutil.copytree(folder.path, broken.path)
    study = OptunaStudy(broken, longer, Path("cache"))
    with sqlite3.connect(broken.database) as connection:
        connection.execute(f"drop table {table_name}")
    connection.close()
    with pytest.raises(StudyError, match=r"study\.db: is damaged: no such table"):
        list(Supervisor(study, CurveExecutor(rising)).events())
    run(folder, longer)
    run(broken, longer)
    assert table(broken) == table(folder)


def test_a_damaged_database_is_refused(make_plan_of: MakePlan, study_folder: StudyFolder) -> None:
    study_folder.database.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StudyError, match=r"study\.db: is damaged: file is not a database"):
        OptunaStudy(study_folder, make_plan_of(CONDITIONAL), Path("cache"))
