"""NNI's part of a study's folder may come from a stranger: nothing in it is trusted."""

import json
import os
import re
import subprocess
import sys

import psutil
import pytest

from elta_tune.errors import DamagedError, StudyError
from elta_tune.executors import Slot
from elta_tune.studies.nni import node as nni_node
from elta_tune.studies.nni.folder import Ending, NniFolder, Workers
from elta_tune.studies.nni.node import end, find_node

PREFIX = "0123456789abcdef" * 2
CONNECTION = {"process": 1, "port": 8080, "prefix": PREFIX}
WORKERS = {"slots": [{"device": "cpu", "threads": 1}], "cache": "/cache"}
ENDED = {"reason": "done", "detail": None}


@pytest.fixture
def folder(study_folder):
    folder = NniFolder(study_folder)
    folder.create()
    return folder


def test_records_are_read_as_they_were_written(folder):
    workers = Workers(slots=(Slot("cuda:0", 4), Slot("cpu", 1)), cache=folder.path)
    folder.write_workers(workers)
    assert folder.workers() == workers
    assert folder.ended() is None and folder.connection() is None
    folder.ended_file.write_text('{"reason": "exhausted"}')  # node leaves out what it has no detail of
    assert folder.ended() == Ending(reason="exhausted")


WRONG = {
    "connection": [
        (CONNECTION, "process", -1),
        (CONNECTION, "process", 10**30),
        (CONNECTION, "process", True),
        (CONNECTION, "port", 65536),
        (CONNECTION, "port", None),
        (CONNECTION, "prefix", None),
        (CONNECTION, "prefix", "../x"),
    ],
    "workers": [
        (WORKERS, "slots", [{"device": 1, "threads": 1}]),
        (WORKERS, "slots", [{"device": "cpu"}]),
        (WORKERS, "slots", "cpu"),
        (WORKERS, "cache", []),
    ],
    "ended": [(ENDED, "reason", "EXPLODED"), (ENDED, "reason", None), (ENDED, "detail", {})],
}
CASES = [(name, whole, field, value) for name, cases in WRONG.items() for whole, field, value in cases]


@pytest.mark.parametrize(("name", "whole", "field", "value"), CASES)
def test_a_wrong_field_is_named_with_its_file(folder, name, whole, field, value):
    file = getattr(folder, f"{name}_file")
    file.write_text(json.dumps({**whole, field: value}))
    with pytest.raises(DamagedError, match=rf"^{re.escape(str(file))}: .*{field}"):
        getattr(folder, name)()


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\x00", '{"reason": NaN}', '{"a": 1, "a": 1}', "[" * 9999])
@pytest.mark.parametrize("name", sorted(WRONG))
def test_a_damaged_record_is_named(folder, name, content):
    file = getattr(folder, f"{name}_file")
    file.write_text(content)
    with pytest.raises(DamagedError, match=rf"^{re.escape(str(file))}: "):
        getattr(folder, name)()


@pytest.mark.parametrize("name", sorted(WRONG))
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_path_that_is_not_a_file_is_named_and_not_read(folder, name, put):
    file = getattr(folder, f"{name}_file")
    put(file)
    with pytest.raises(DamagedError, match=rf"^{re.escape(str(file))}: "):
        getattr(folder, name)()


PLACES = ["node.log", "experiment", "experiment/db/nni.sqlite", "slots/0-cpu", "attached.lock", "work", "config.json"]


@pytest.mark.parametrize("place", ["", *PLACES])
def test_links_are_refused_and_nothing_is_written(study_folder, tmp_path, place):
    folder, outside = NniFolder(study_folder), tmp_path / "outside"
    outside.mkdir(mode=0o755)
    link = folder.path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)
    with pytest.raises(StudyError, match=rf"^{re.escape(str(link))}: should be a file or a folder, not a link"):
        folder.create()
    assert outside.stat().st_mode & 0o777 == 0o755 and list(outside.iterdir()) == []


def test_a_pipe_in_the_place_of_a_log_does_not_block(folder):
    os.mkfifo(folder.node_log)
    with pytest.raises(StudyError, match=r"node\.log: should be a file"):
        folder.create()


def test_the_working_directory_of_trials_is_made_empty(folder):
    for _ in range(2):
        folder.make_work()
        assert list(folder.work.iterdir()) == []
        (folder.work / "torch.py").write_text("raise SystemExit")
        (folder.work / "json").mkdir()


@pytest.fixture
def process(folder):
    """`process(VARIABLE=value)`: one that waits, with these variables."""
    started = []

    def process(**variables):
        environment = {**os.environ, **variables}
        code = "import sys; print(1, flush=True); sys.stdin.read()"
        begun = subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1)
        begun.stdout.readline()
        started.append(begun)
        return begun

    yield process
    for each in started:
        each.kill()
        each.communicate()


def connect(folder, number, prefix=PREFIX):
    folder.connection_file.write_text(json.dumps({**CONNECTION, "process": number, "prefix": prefix}))


def test_no_foreign_process_is_taken_for_node(folder, process, tmp_path):
    """A planted number, one that came again, and the node of the study that this one is a copy of."""
    own = {nni_node.STUDY_VARIABLE: str(folder.study.path.resolve()), nni_node.PREFIX_VARIABLE: PREFIX}
    copied = {**own, nni_node.STUDY_VARIABLE: str(tmp_path / "original")}
    later = {**copied, nni_node.PREFIX_VARIABLE: PREFIX[::-1]}
    for variables in ({}, later, copied):
        foreign = process(**variables)
        connect(folder, foreign.pid)
        assert find_node(folder) is None
        end(folder)
        assert foreign.poll() is None
    node = process(**own)
    connect(folder, node.pid)
    assert find_node(folder).process == psutil.Process(node.pid)
    end(folder)
    assert not psutil.pid_exists(node.pid)


def test_options_of_other_programs_are_not_passed_on(folder, monkeypatch):
    foreign = {"NODE_OPTIONS": "--inspect", "NODE_PATH": ".", "NNI_PLATFORM": "unittest", "SDK_PROCESS": "x"}
    foreign |= {"BASH_ENV": "./env.sh", "ENV": "./env.sh"}
    for name, value in {**foreign, "LD_LIBRARY_PATH": "/opt/lib", "ENVIRONMENT": "mine"}.items():
        monkeypatch.setenv(name, value)
    passed = nni_node._environment(folder.study, PREFIX)
    assert not set(foreign) & set(passed)
    assert (passed["LD_LIBRARY_PATH"], passed["ENVIRONMENT"]) == ("/opt/lib", "mine")
