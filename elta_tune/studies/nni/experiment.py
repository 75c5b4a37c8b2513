"""The NNI back end: NNI's node decides what runs; this starts it, watches it, and tells the same events as Optuna's."""

from __future__ import annotations

import json
import shlex
import sqlite3
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from elta_tune.errors import StudyError
from elta_tune.executors import Job, Reported
from elta_tune.files import write_json
from elta_tune.records import StudyFolder, TrialFolder
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import Node, end, kill, start_node, verify_mends
from elta_tune.studies.nni.rest import NodeGone
from elta_tune.studies.nni.space import decode, to_nni
from elta_tune.studies.optuna.supervisor import (
    ANY_FAILURES_IN_A_ROW,
    FAILURES_IN_A_ROW,
    Event,
    Finished,
    Started,
    Stopping,
    Tick,
)
from elta_tune.studies.plan import StudyPlan

TUNERS = {"tpe": "TPE", "random": "Random", "grid": "GridSearch", "evolution": "Evolution"}
"""NNI's tuners by a space's samplers."""
WAITING = ("UNKNOWN", "ADD_RESUMED")
FAILED = ("FAILED", "USER_CANCELED", "SYS_CANCELED")
PAUSE = 0.5
"""Seconds between looks at node and the trials."""


def experiment(folder: StudyFolder, plan: StudyPlan, workers: Workers) -> dict[str, Any]:
    """NNI's configuration of a study."""
    nni, objective = NniFolder(folder), plan.space.objective
    own = {"study": str(folder.path), "optimize_mode": objective.towards}
    trial = {
        # `exec`: NNI stops a trial by a signal to the shell's process alone.
        "trialCommand": f"exec {shlex.join([sys.executable, '-m', 'elta_tune.studies.nni.trial', str(folder.path)])}",
        "trialCodeDirectory": str(folder.path),
    }
    config: dict[str, Any] = {
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
            "codeDirectory": str(nni.path),
            "classArgs": {**own, "workers": len(workers.slots), "tuner": TUNERS[plan.space.sampler.name]},
        },
        # Not NNI's scheduling of GPUs: a trial takes a slot itself.
        "trainingService": {"platform": "local", **trial, "debug": False, "reuseMode": False},
    }
    if plan.space.pruner.name == "median":  # NNI's Medianstop
        maker = "elta_tune.studies.nni.tuner.make_assessor"
        config["assessor"] = {"className": maker, "codeDirectory": str(nni.path), "classArgs": own}
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
    nni.write_workers(workers)
    config = experiment(folder, plan, workers)
    failures = {"alike": FAILURES_IN_A_ROW, "any": ANY_FAILURES_IN_A_ROW}
    write_json(nni.config_file, {"experiment": config, "failures": failures})
    nni.dispatcher_log.unlink(missing_ok=True)  # the tuner appends, and its last error is to be that of this start
    node = start_node(nni, "resume" if has_experiment(nni) else "create", port, lock)
    try:
        node.rest.post("experiment", config)
        verify_mends(nni)
    except StudyError:
        kill(nni)
        raise
    except NodeGone as error:
        kill(nni)
        raise StudyError(f"NNI did not take the experiment: {error}", f"look into {nni.node_log}") from error
    return node


def view(folder: StudyFolder, port: int | None) -> Node:
    """Starts NNI's web UI on a study that does not run.

    Raises:
        StudyError: NNI never ran it, does not start, or is not guarded.
    """
    nni = NniFolder(folder)
    if not has_experiment(nni):
        raise StudyError(f"study {folder.name} has nothing to show in NNI's web UI", f"elta-tune show {folder.name}")
    end(nni)
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


def _open(nni: NniFolder) -> closing[sqlite3.Connection]:
    """NNI's database. It is only read, but what a killed node left half written has to be taken back."""
    return closing(sqlite3.connect(f"{nni.database.as_uri()}?mode=rw", uri=True))


@dataclass(frozen=True)
class NniJob:
    """A trial as NNI knows it."""

    id: str
    number: int
    status: str
    parameters: Mapping[str, Any]
    message: str | None


def recorded_jobs(nni: NniFolder) -> list[NniJob]:
    """The trials in NNI's database, which is only read once node is gone: a reader may lock out its writes."""
    if not has_experiment(nni):
        return []
    query = (
        "select trialJobId, event, data, sequenceId, message from TrialJobEvent where trialJobId != '' order by rowid"
    )
    jobs: dict[str, dict[str, Any]] = {}
    with _open(nni) as database:
        for id, event, data, number, message in database.execute(query):
            job = jobs.setdefault(id, {"trialJobId": id, "hyperParameters": []})
            job |= {"status": "USER_CANCELED" if event == "USER_TO_CANCEL" else event, "message": message}
            job["sequenceId"] = job.get("sequenceId") if number is None else number
            job["hyperParameters"] += [data] if data else []
    return _jobs(jobs.values())


def _jobs(told: Any) -> list[NniJob]:
    known = [job for job in told if job.get("hyperParameters") and job.get("sequenceId") is not None]
    jobs = [
        NniJob(
            job["trialJobId"],
            job["sequenceId"],
            job["status"],
            json.loads(job["hyperParameters"][0])["parameters"],
            job.get("message"),
        )
        for job in known
    ]
    return sorted(jobs, key=lambda job: job.number)


@dataclass
class NniWatcher:
    """Follows a study that NNI runs; `events()` is the whole of it, and ends node with all that it started.

    After it, `stopped` says that somebody stopped it; None means that the budget is used (or the grid).
    """

    folder: StudyFolder
    plan: StudyPlan
    node: Node
    cache: Path
    stopped: Literal["interrupted"] | None = None
    interrupted: bool = False
    """Set from outside, it asks for a stop: trials that run go on from their last epoch at the next start."""

    def events(self) -> Generator[Event, None, None]:
        """Watches until node has ended, and yields what happens.

        Raises:
            StudyError: NNI ended for another reason than the budget: a dead tuner, failures in a row, a kill.
        """
        nni, news = NniFolder(self.folder), News(self.folder, self.plan, self.cache)
        jobs: list[NniJob] = []
        try:
            while self.node.is_alive:
                if self.interrupted and self.stopped is None:
                    self.stopped = "interrupted"
                    yield Stopping("now")
                    self.node.process.terminate()
                jobs = self._ask() or jobs
                yield from list(news.of(jobs)) or [Tick()]
                time.sleep(PAUSE)
            end(nni)
        except BaseException:  # a second Ctrl-C, say
            kill(nni)
            raise
        yield from news.of(recorded_jobs(nni))
        if self.stopped is None and (wrong := fault(nni)) is not None:
            raise wrong

    def _ask(self) -> list[NniJob]:
        try:
            return _jobs(self.node.rest.get("trial-jobs"))
        except NodeGone:
            return []  # it ends


def reconcile(folder: StudyFolder, plan: StudyPlan) -> None:
    """Gives every trial that died while nobody watched its `result.json`; node must have ended."""
    for _ in News(folder, plan, Path()).of(recorded_jobs(NniFolder(folder))):
        pass


class News:
    """What happened since one asked last, from the trials as NNI knows them and their folders."""

    def __init__(self, folder: StudyFolder, plan: StudyPlan, cache: Path) -> None:
        self._folder, self._plan, self._cache = folder, plan, cache
        self._heard: dict[int, int] = {}
        self._done = {result["trial"] for result in folder.results()}

    def of(self, jobs: Iterable[NniJob]) -> Iterator[Event]:
        """Trials that began, epochs and results, each once. A trial that died without a result is given one."""
        for job in jobs:
            if job.number not in self._done and job.status not in WAITING:
                yield from self._of(job)

    def _of(self, nni_job: NniJob) -> Iterator[Event]:
        number, trial = nni_job.number, self._folder.trial(nni_job.number)
        if number not in self._heard:
            job = self._job(nni_job)
            self._heard[number] = len(trial.epochs())
            yield Started(job, resumed=self._heard[number] > 0)
        for line in trial.epochs()[self._heard[number] :]:
            self._heard[number] += 1
            yield Reported(number, line["step"], line)
        if nni_job.status in FAILED and trial.result() is None:
            self._fail(nni_job, trial)
        if (result := trial.result()) is not None:
            self._done.add(number)
            yield Finished(result)

    def _fail(self, nni_job: NniJob, trial: TrialFolder) -> None:
        job = self._job(nni_job)
        trial.create(job.config.to_yaml())
        by_hand = nni_job.status == "USER_CANCELED"
        reason = nni_job.message or ("cancelled in the web UI" if by_hand else "the process ended without a result")
        trial.fail(job.number, job.params, reason, nni_trial_id=nni_job.id)

    def _job(self, job: NniJob) -> Job:
        params = decode(self._plan.space, self._plan.recipe, job.parameters)
        config = self._plan.recipe.replace(params, source=f"trial {job.number}")
        return Job(job.number, config, params, self._folder.trial(job.number).path, self._cache)


def fault(nni: NniFolder) -> StudyError | None:
    """Why node ended, None if it is as it should be."""
    told, again = nni.ended(), "`elta-tune run` goes on with the study"
    if told is None:
        return StudyError("NNI's node process was ended from outside", again)
    if told["reason"] in ("done", "exhausted"):
        return None
    in_a_row = {
        "alike": f"{FAILURES_IN_A_ROW} trials in a row failed alike",
        "failures": f"{ANY_FAILURES_IN_A_ROW} trials in a row failed",
    }
    if told["reason"] in in_a_row:
        failed = f"{in_a_row[told['reason']]}: {told['detail']}"
        return StudyError(failed, f"look into {nni.study.path / 'trials'}; {again}")
    if told["reason"] == "tuner":
        return StudyError(f"NNI's tuner died{last_error(nni)}", f"look into {tuner_log(nni)}; {again}")
    return StudyError(f"NNI stopped: {told['detail']}{last_error(nni)}", f"look into {nni.node_log}; {again}")


def last_error(nni: NniFolder) -> str:
    """What the tuner of the last start complained of last, as ``: ValueError: …``, or nothing."""
    log = tuner_log(nni)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    errors = [line for line in lines if "ERROR" in line or line.partition(":")[0].endswith("Error")]
    return f": {errors[-1]}" if errors else ""


def tuner_log(nni: NniFolder) -> Path:
    """Where the tuner's words are: its own log, or node's if it did not come to open one."""
    return nni.dispatcher_log if nni.dispatcher_log.exists() else nni.node_log
