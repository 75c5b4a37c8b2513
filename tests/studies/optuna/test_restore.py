"""The folders of the trials are the truth: a database that is lost, moved or in conflict with them is rebuilt."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from curve_executor import CONDITIONAL, Database, MakePlan, Table, params, rising, run

from elta_tune.errors import DamagedError
from elta_tune.records import StudyFolder
from elta_tune.studies.completion import is_finished
from elta_tune.studies.optuna.study import OptunaStudy
from elta_tune.studies.plan import StudyPlan

Run = Callable[[int], StudyFolder]


@pytest.fixture
def plan(make_plan_of: MakePlan) -> StudyPlan:
    return make_plan_of(CONDITIONAL, budget={"trials": 8}, enqueue=[{"optim.lr": 0.05}])


def with_trials(plan: StudyPlan, trials: int) -> StudyPlan:
    return plan.with_budget(plan.budget.model_copy(update={"trials": trials}))


@pytest.fixture
def undisturbed(plan: StudyPlan, tmp_path: Path, table: Table) -> list[tuple[object, ...]]:
    folder = StudyFolder(tmp_path / "undisturbed")
    folder.path.mkdir()
    run(folder, plan)
    return table(folder)


def change(folder: StudyFolder, *statements: str) -> None:
    with sqlite3.connect(folder.database) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


DAMAGE: dict[str, Callable[[StudyFolder], object]] = {
    "lost": lambda folder: folder.database.unlink(),
    "a trial is deleted": lambda folder: change(folder, "delete from trials where number = 2"),
    "the last trial is deleted": lambda folder: change(folder, "delete from trials where number = 4"),
    "all trials are deleted": lambda folder: change(folder, "delete from trials"),
    "another state": lambda folder: change(folder, "update trials set state = 'FAIL' where number = 1"),
    "another value": lambda folder: change(folder, "update trial_values set value = 0.1 where trial_id = 2"),
    "another parameter": lambda folder: change(
        folder, "update trial_params set param_value = 0.02 where trial_id = 3 and param_name = 'optim.lr'"
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_study_continues_from_the_folders(
    name: str,
    plan: StudyPlan,
    study_folder: StudyFolder,
    undisturbed: list[tuple[object, ...]],
    table: Table,
    database: Database,
) -> None:
    run(study_folder, with_trials(plan, 5))
    DAMAGE[name](study_folder)
    executor = run(study_folder, plan, slots=1)
    assert executor.started == [(5, 1), (6, 1), (7, 1)]
    assert table(study_folder) == undisturbed


def test_restored_database_equals_the_first(
    make_plan_of: MakePlan, study_folder: StudyFolder, database: Database
) -> None:
    plan = make_plan_of(CONDITIONAL, changes={"training.epochs": 6}, pruner={"name": "median"}, budget={"trials": 12})
    run(study_folder, plan, lambda job, step: rising(job, step) - 0.5 * (job.number % 2))
    before = database(study_folder)
    assert {row["state"] for row in before} == {"COMPLETE", "PRUNED"}
    study_folder.database.unlink()
    OptunaStudy(study_folder, plan, Path("cache")).unfinished()
    after = database(study_folder)
    assert [row | {"value": None} for row in after] == [row | {"value": None} for row in before]


def test_trial_without_a_folder_keeps_its_number(
    plan: StudyPlan, study_folder: StudyFolder, undisturbed: list[tuple[object, ...]], table: Table
) -> None:
    run(study_folder, with_trials(plan, 5))
    shutil.rmtree(study_folder.trial(1).path)
    study_folder.database.unlink()
    executor = run(study_folder, with_trials(plan, 5))
    assert executor.started == [(1, 1)]
    assert table(study_folder) == undisturbed[:5]


def test_renamed_study_continues(
    plan: StudyPlan, study_folder: StudyFolder, tmp_path: Path, undisturbed: list[tuple[object, ...]], table: Table
) -> None:
    run(study_folder, with_trials(plan, 5))
    study_folder.path.rename(tmp_path / "two")
    moved = StudyFolder(tmp_path / "two")
    assert run(moved, plan).started == [(5, 1), (6, 1), (7, 1)]
    assert table(moved) == undisturbed


def test_database_of_two_studies_is_named(plan: StudyPlan, study_folder: StudyFolder) -> None:
    run(study_folder, with_trials(plan, 2))
    change(study_folder, "insert into studies (study_name) values ('another')")
    with pytest.raises(DamagedError, match="holds 2 studies"):
        OptunaStudy(study_folder, plan, Path("cache"))


CONTENTS = {
    "an unknown state": "update trials set state = 'EXPLODED' where number = 1",
    "a null distribution": "update trial_params set distribution_json = 'null'",
    "an unknown distribution": """update trial_params set distribution_json = '{"name": "X", "attributes": {}}'""",
    "no JSON": "update trial_params set distribution_json = '{'",
    "another schema": "update alembic_version set version_num = 'v9.9.9'",
    "an attribute that is no JSON": "update study_user_attributes set value_json = '{'",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_unreadable_content_is_named_in_one_line(name: str, plan: StudyPlan, study_folder: StudyFolder) -> None:
    run(study_folder, with_trials(plan, 3))
    change(study_folder, CONTENTS[name])
    with pytest.raises(DamagedError) as caught:
        run(study_folder, plan)
    assert str(study_folder.database) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint is not None
    assert "elta-tune repair" in caught.value.hint


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "qmc"])
@pytest.mark.parametrize("slots", [1, 3])
def test_no_point_is_trained_twice(
    name: str, slots: int, make_plan_of: MakePlan, study_folder: StudyFolder, table: Table
) -> None:
    parameters = {
        "mixup.alpha": {"type": "categorical", "choices": [0.5, 1.0, 2.0, None]},
        "self_training.rounds": {"type": "int", "low": 0, "high": 1},
    }
    plan = make_plan_of(parameters, sampler={"name": name}, budget={"trials": 20}, enqueue=[{"mixup.alpha": 2.0}])
    run(study_folder, with_trials(plan, 5), lambda job, step: 0.5, slots)
    run(study_folder, plan, lambda job, step: 0.5, slots)
    found = [tuple(point.items()) for point in params(table(study_folder))]
    assert len(found) == len(set(found)) == 8
    assert is_finished(study_folder, plan)
