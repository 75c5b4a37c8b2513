"""What the back end guarantees, whatever node does: trials check their parameters, processes are found and ended."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest

from elta_tune.errors import DamagedError, StudyError
from elta_tune.executors import Slot
from elta_tune.records import StudyFolder
from elta_tune.studies.events import Finished
from elta_tune.studies.nni import node as nni_node
from elta_tune.studies.nni.backend import BACKEND
from elta_tune.studies.nni.experiment import has_experiment, recorded_jobs, start
from elta_tune.studies.nni.folder import NniFolder, Workers
from elta_tune.studies.nni.node import end, kill, members
from elta_tune.studies.nni.watcher import NniRun
from elta_tune.studies.plan import record_plan

pytest.importorskip("nni_node", reason="NNI is not installed")

LR = {"optim.lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True}}
# Trial 0 asks after trial 1 has got an answer, and those that come in their places never.
HOOKS = """
import os, time
from pathlib import Path
if os.environ.get("NNI_TRIAL_SEQ_ID") is not None:
    from elta_tune.studies.nni.rest import TrialChannel
    ask, number = TrialChannel.parameters, os.environ["NNI_TRIAL_SEQ_ID"]
    first = {{"0": "1", "1": None}}.get(number, "never")
    def asks(self):
        while first is not None and not Path(f"{root}/asked-{{first}}").exists():
            time.sleep(0.05)
        received = ask(self)
        Path(f"{root}/asked-{{number}}").touch()
        return received
    TrialChannel.parameters = asks
"""


@pytest.fixture
def without(tmp_path, monkeypatch):
    """Removes a part of the patches of NNI."""

    def without(part, instead=""):
        patches = nni_node.PATCHES.read_text()
        assert part in patches
        whole = patches.replace("./failures.js", str(nni_node.PATCHES.with_name("failures.js")))
        (tmp_path / "patches.js").write_text(whole.replace(part, instead))
        monkeypatch.setattr(nni_node, "PATCHES", tmp_path / "patches.js")

    return without


def test_unpatched_nni_is_ended_before_a_trial_starts(without, study_folder, make_plan_of, cache):
    without("V3asV1: patchBinding, ")
    plan = make_plan_of(LR)
    record_plan(study_folder, plan, {"backend": "nni"})
    with study_folder.lock() as lock, pytest.raises(StudyError, match=r"not patched: V3asV1$"):
        start(study_folder, plan, Workers(slots=[Slot("cpu", 1)], cache=cache), None, lock)
    assert members(NniFolder(study_folder)) == [] and study_folder.trials() == []


def test_a_trial_refuses_the_parameters_of_another(without, tmp_path, monkeypatch, study_folder, make_plan_of, cache):
    without("if (index >= 0) {", "if (false) {")  # parameters are not bound to trials: NNI swaps them
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(HOOKS.format(root=tmp_path))
    monkeypatch.syspath_prepend(tmp_path / "hooks")  # children import what this process can

    plan = make_plan_of(LR, budget={"trials": 2}, sampler={"name": "random"}, enqueue=[{"optim.lr": 0.02}])
    record_plan(study_folder, plan, {"backend": "nni"})
    results = []
    with study_folder.lock() as lock:
        workers = Workers(slots=(Slot("cpu", 1),) * 2, cache=cache)
        watcher = NniRun(study_folder, plan, start(study_folder, plan, workers, None, lock), workers)
        for event in watcher.events():
            results += [event.result] if isinstance(event, Finished) else []
            watcher.interrupted |= len(results) == 2
    assert members(NniFolder(study_folder)) == []
    reasons = {result.trial: result.reason for result in results}
    assert sorted(reasons) == [0, 1]
    for number, reason in reasons.items():
        wrong = f"parameter_id {1 - number}, on record are {number}"
        assert reason == f"NNI sent the parameters of another trial: {wrong}"
        assert study_folder.trial(number).epochs() == []


def test_every_process_of_a_study_is_ended_and_no_other(study_folder, tmp_path):
    folder = NniFolder(study_folder)
    stubborn = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint(1, flush=True)\ntime.sleep(60)"
    )
    meek = "import time\nprint(1, flush=True)\ntime.sleep(60)"

    def process(code, study):
        environment = {**os.environ, nni_node.STUDY_VARIABLE: str(study)}
        begun = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        begun.stdout.readline()
        return begun

    own = [process(meek, study_folder.path), process(stubborn, study_folder.path)]
    other = process(meek, tmp_path / "another")
    try:
        assert {member.pid for member in members(folder)} == {each.pid for each in own}
        began = time.monotonic()
        end(folder)
        assert [psutil.pid_exists(each.pid) for each in own] == [False, False]
        assert time.monotonic() - began >= nni_node.PATIENCE  # it was given time to end by itself
        assert other.poll() is None
        kill(NniFolder(StudyFolder(tmp_path / "another")))
        assert not psutil.pid_exists(other.pid)
    finally:
        for each in [*own, other]:
            each.kill()
            each.communicate()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_another_user_does_not_know_how_a_study_ended(study_folder, make_plan_of):
    folder = NniFolder(study_folder)
    folder.create()
    folder.ended_file.write_text('{"reason": "exhausted"}')
    assert BACKEND.is_exhausted(study_folder, make_plan_of(LR))
    os.seteuid(65534)
    try:
        assert folder.ended() is None
    finally:
        os.seteuid(0)


def test_a_damaged_database_is_named(study_folder):
    folder = NniFolder(study_folder)
    folder.database.parent.mkdir(parents=True)
    folder.database.write_text("no database" * 1000)
    with pytest.raises(DamagedError, match=r"nni\.sqlite: file is not a database"):
        has_experiment(folder)


SENT = json.dumps({"parameter_id": 0, "parameters": {"optim.lr": 0.01}})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", ("../../x", "RUNNING", SENT, 0)),
        ("number", ("abc", "RUNNING", SENT, -1)),
        ("number", ("abc", "RUNNING", SENT, "zero")),
        ("proposal", ("abc", "RUNNING", "[]", 0)),
        ("parameters", ("abc", "RUNNING", '{"parameter_id": 0, "parameters": 1}', 0)),
        ("is damaged", ("abc", "RUNNING", "{", 0)),
    ],
)
def test_a_wrong_trial_in_the_database_is_named(study_folder, field, values):
    folder = NniFolder(study_folder)
    folder.database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(folder.database)) as database, database:
        database.execute("create table ExperimentProfile (id)")
        database.execute("insert into ExperimentProfile values ('experiment')")
        database.execute("create table TrialJobEvent (trialJobId, event, data, sequenceId, message)")
        database.execute("insert into TrialJobEvent values (?, ?, ?, ?, null)", values)
    with pytest.raises(DamagedError, match=rf"nni\.sqlite: trial {values[3]}: .*{field}"):
        recorded_jobs(folder)


def test_a_write_that_a_kill_cut_off_is_rolled_back(study_folder):
    folder = NniFolder(study_folder)
    folder.database.parent.mkdir(parents=True)
    half_written = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("create table ExperimentProfile (id)")
database.execute("create table TrialJobEvent (trialJobId, event, data, sequenceId, message)")
database.execute("insert into ExperimentProfile values ('experiment')")
sent = '{"parameter_id": 0, "parameters": {}}'
database.execute("insert into TrialJobEvent values ('abc', 'RUNNING', ?, 0, null)", [sent])
database.execute("pragma cache_size = 1")
database.execute("begin")
for _ in range(2000):
    database.execute("insert into TrialJobEvent values ('abc', 'FAILED', null, 0, null)")
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", half_written, str(folder.database)], check=False)
    assert killed.returncode == -9
    assert folder.database.with_name("nni.sqlite-journal").exists()
    assert has_experiment(folder)
    assert [(job.id, job.status) for job in recorded_jobs(folder)] == [("abc", "RUNNING")]
