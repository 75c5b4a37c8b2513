"""Plans of studies, and the files of a study."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from elta_tune.config import TrialConfig
from elta_tune.executors.local import LocalExecutor
from elta_tune.records import StudyFolder
from elta_tune.space.space import SearchSpace
from elta_tune.studies.plan import StudyPlan, make_plan

MakePlan = Callable[..., StudyPlan]


@pytest.fixture(scope="session", autouse=True)
def _forkserver() -> None:
    """Its imports run while the first tests do something else."""
    LocalExecutor.prepare()


@pytest.fixture(scope="session", autouse=True)
def _quick_commits() -> Iterator[None]:
    """No test cuts the power: commits need not wait for the disk."""

    def relax(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("pragma synchronous = off")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture
def make_plan_of(recipe: TrialConfig) -> MakePlan:
    """`make_plan_of(parameters, recipe={"training.epochs": 4}, budget={"trials": 5}, …)`."""

    def make(parameters: Mapping[str, Any], *, changes: Mapping[str, Any] | None = None, **space: Any) -> StudyPlan:
        content = {"parameters": parameters, "pruner": {"name": "none"}, **space}
        return make_plan(SearchSpace.model_validate(content), recipe.replace(changes or {}))

    return make


@pytest.fixture
def study_folder(tmp_path: Path) -> StudyFolder:
    """An empty folder for a study."""
    (tmp_path / "study").mkdir()
    return StudyFolder(tmp_path / "study")


@pytest.fixture(scope="session")
def table() -> Callable[[StudyFolder], list[tuple[Any, ...]]]:
    """Reads what a study found."""
    return _table


@pytest.fixture(scope="session")
def database() -> Callable[[StudyFolder], list[dict[str, Any]]]:
    """Reads a study's database."""
    return _database


def _table(folder: StudyFolder) -> list[tuple[Any, ...]]:
    """What a study found: for each trial its parameters, state, value and curve."""
    rows = []
    for number, trial in folder.trials():
        result = trial.result()
        assert result is not None, number
        curve = [(record.step, *map(record.value, ("srcc", "plcc", "accuracy"))) for record in trial.epochs()]
        rows.append((number, result.params, result.state, result.value, result.metrics, curve))
    return rows


def _database(folder: StudyFolder) -> list[dict[str, Any]]:
    """The trials as they stand in SQLite, read without Optuna: state, value, reported steps."""
    with sqlite3.connect(folder.database) as connection:
        rows = connection.execute("select trial_id, number, state from trials order by number").fetchall()
        values = dict(connection.execute("select trial_id, value from trial_values").fetchall())
        reported = connection.execute(
            "select trial_id, step, intermediate_value from trial_intermediate_values order by step"
        )
        steps: dict[int, dict[int, float]] = {}
        for trial, step, value in reported.fetchall():
            steps.setdefault(trial, {})[step] = value
        attributes: dict[int, dict[str, Any]] = {}
        for trial, key, value in connection.execute("select trial_id, key, value_json from trial_user_attributes"):
            attributes.setdefault(trial, {})[key] = json.loads(value)
    connection.close()
    return [
        {
            "number": number,
            "state": state,
            "value": values.get(trial),
            "steps": steps.get(trial, {}),
            "attributes": attributes.get(trial, {}),
        }
        for trial, number, state in rows
    ]
