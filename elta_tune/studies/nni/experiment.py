"""A study as an experiment of NNI: its configuration, its start, its web UI, and the trials in its database."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from elta_tune.errors import DamagedError, StudyError
from elta_tune.files import parse_json, write_json
from elta_tune.processes import PACKAGE_FOLDER, python_command
from elta_tune.records import StudyFolder
from elta_tune.records.reader import Count, Text, read_record
from elta_tune.studies.events import ANY_FAILURES_IN_A_ROW, FAILURES_IN_A_ROW
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import Node, end, kill, start_node, verify_patches
from elta_tune.studies.nni.rest import NodeGone, Proposal
from elta_tune.studies.nni.space import Json, to_nni
from elta_tune.studies.plan import StudyPlan, read_plan

TUNERS = {"tpe": "TPE", "random": "Random", "grid": "GridSearch", "evolution": "Evolution"}
"""NNI's tuners by a space's samplers."""


def experiment(folder: StudyFolder, plan: StudyPlan, workers: Workers) -> Json:
    """NNI's configuration of a study."""
    nni, objective = NniFolder(folder), plan.space.objective
    own = {"study": str(folder.path), "optimize_mode": objective.resolved_direction}
    trial = {
        # `exec`: NNI stops a trial by a signal to the shell's process only.
        "trialCommand": f"exec {shlex.join(python_command('elta_tune.studies.nni.trial', str(folder.path)))}",
        "trialCodeDirectory": str(nni.work),
    }
    config: Json = {
        "experimentName": folder.name,
        "experimentType": "hpo",
        "searchSpace": to_nni(plan.space, plan.recipe),
        **trial,
        "trialConcurrency": len(workers.slots),
        "maxTrialNumber": plan.budget.trials,
        "useAnnotation": False,
        "debug": False,
        "logLevel": "info",
        "experimentWorkingDirectory": str(nni.path),
        "tuner": {
            "className": "elta_tune.studies.nni.tuner.make_tuner",
            "codeDirectory": PACKAGE_FOLDER,
            "classArgs": {**own, "workers": len(workers.slots), "tuner": TUNERS[plan.space.sampler.name]},
        },
        # Not NNI's scheduling of GPUs: a trial takes a slot itself.
        "trainingService": {"platform": "local", **trial, "debug": False, "reuseMode": False},
    }
    if plan.space.pruner.name == "median":  # NNI's Medianstop
        maker = "elta_tune.studies.nni.tuner.make_assessor"
        config["assessor"] = {"className": maker, "codeDirectory": PACKAGE_FOLDER, "classArgs": own}
    return config


def start(folder: StudyFolder, plan: StudyPlan, workers: Workers, port: int | None, lock: int) -> Node:
    """Starts or resumes the experiment; nothing of an earlier start may run any more.

    Args:
        lock: descriptor of the study's lock.

    Raises:
        StudyError: NNI does not start, or is not guarded.
    """
    nni = NniFolder(folder)
    nni.create()
    nni.make_work()
    nni.write_workers(workers)
    config = _write_config(folder, plan, workers)
    nni.dispatcher_log.unlink(missing_ok=True)  # the tuner appends, and its last error is to be that of this start
    node = start_node(nni, "resume" if has_experiment(nni) else "create", port, lock)
    try:
        node.rest.post("experiment", config)
        verify_patches(nni)
    except StudyError:
        kill(nni)
        raise
    except NodeGone as error:
        kill(nni)
        raise StudyError(f"NNI did not take the experiment: {error}", f"look into {nni.node_log}") from error
    return node


def _write_config(folder: StudyFolder, plan: StudyPlan, workers: Workers) -> Json:
    """Writes the file that node reads instead of its database: the study may come from someone else."""
    config = experiment(folder, plan, workers)
    failures = {"alike": FAILURES_IN_A_ROW, "any": ANY_FAILURES_IN_A_ROW}
    write_json(NniFolder(folder).config_file, {"experiment": config, "failures": failures})
    return config


def view(folder: StudyFolder, port: int | None) -> Node:
    """Starts NNI's web UI on a study that does not run.

    Raises:
        StudyError: NNI never ran it, does not start, or is not guarded.
    """
    nni = NniFolder(folder)
    if not has_experiment(nni):
        raise StudyError(f"study {folder.name} has nothing to show in NNI's web UI", f"elta-tune show {folder.name}")
    end(nni)
    nni.create()
    _write_config(folder, read_plan(folder), nni.workers())
    node = start_node(nni, "view", port, None)
    try:
        node.rest.post("experiment", {})
    except NodeGone as error:
        kill(nni)
        raise StudyError(f"NNI did not open the experiment: {error}", f"look into {nni.node_log}") from error
    return node


def has_experiment(nni: NniFolder) -> bool:
    """Whether NNI has begun the experiment, and can resume or show it."""
    if not nni.database.exists():
        return False
    with _open(nni) as database:
        tables = database.execute("select name from sqlite_master where name = 'ExperimentProfile'").fetchall()
        return bool(tables) and database.execute("select 1 from ExperimentProfile limit 1").fetchone() is not None


@contextmanager
def _open(nni: NniFolder) -> Iterator[sqlite3.Connection]:
    """NNI's database. It is only read, but what a killed node left half written has to be rolled back.

    Raises:
        DamagedError: it can't be read.
    """
    try:
        with closing(sqlite3.connect(f"{nni.database.as_uri()}?mode=rw", uri=True)) as database:
            yield database
    except sqlite3.Error as error:
        raise DamagedError(f"{nni.database}: {error}", "restore it, or start another study") from error


@dataclass(frozen=True)
class NniJob:
    """A trial in NNI's database."""

    id: Annotated[str, Field(pattern=r"^\w+$")]
    number: Count
    status: Text
    proposal: Proposal
    message: Text | None


def recorded_jobs(nni: NniFolder) -> list[NniJob]:
    """The trials in NNI's database, which is only read once node is gone: a reader may lock out its writes.

    Raises:
        DamagedError: it can't be read.
    """
    if not has_experiment(nni):
        return []
    query = (
        "select trialJobId, event, data, sequenceId, message from TrialJobEvent where trialJobId != '' order by rowid"
    )
    jobs: dict[str, Json] = {}
    with _open(nni) as database:
        for id, event, data, number, message in database.execute(query):
            job = jobs.setdefault(id, {"trialJobId": id, "hyperParameters": []})
            job |= {"status": "USER_CANCELED" if event == "USER_TO_CANCEL" else event, "message": message}
            job["sequenceId"] = job.get("sequenceId") if number is None else number
            job["hyperParameters"] += [data] if data else []
    return read_jobs(jobs.values(), str(nni.database))


def read_jobs(records: Iterable[Json], place: str) -> list[NniJob]:
    """Trials as NNI's `trial-jobs` lists them, by number; those without a number or parameters have not begun.

    Raises:
        DamagedError: a field is wrong; `place` says where.
    """
    begun = [job for job in records if job.get("hyperParameters") and job.get("sequenceId") is not None]
    return sorted((_read_job(job, f"{place}: trial {job['sequenceId']}") for job in begun), key=lambda job: job.number)


def _read_job(job: Json, place: str) -> NniJob:
    names = {"id": "trialJobId", "number": "sequenceId", "status": "status", "message": "message"}
    known = {field: job.get(name) for field, name in names.items()}
    return read_record(NniJob, {**known, "proposal": parse_json(str(job["hyperParameters"][0]).encode(), place)}, place)
