"""Studies that run under NNI for real: the command, node, the tuner and the trials are processes of their own."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

COMMAND = str(Path(sys.executable).with_name("elta-tune"))
PATIENCE = 240.0
"""Seconds that anything may take on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks whole studies as slow, and what looks at their pages."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("slow")
            if "page" in getattr(item, "fixturenames", ()):
                item.add_marker("browser")


def free_port() -> int:
    """A free port, far from NNI's default ones."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class NniStudies:
    """A working folder in which studies run under NNI.

    `hooks` is Python that each trial's process runs first; `number` is its trial's.
    """

    def __init__(self, root: Path, recipe: dict[str, Any], cache: Path) -> None:
        self.root, self.cache = root, cache
        (root / "tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
        (root / "hooks").mkdir()
        self.commands: list[subprocess.Popen[str]] = []

    def hooks(self, code: str) -> None:
        """Sets what trials' processes do first."""
        head = "import os, sys, time\nfrom pathlib import Path\nnumber = os.environ.get('NNI_TRIAL_SEQ_ID')\n"
        indented = "".join(f"    {line}\n" for line in code.splitlines())
        (self.root / "hooks" / "sitecustomize.py").write_text(f"{head}if number is not None:\n{indented}    pass\n")

    def space(self, name: str, **content: Any) -> None:
        """Writes `name.yaml`."""
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts the command, with a port that no other test takes; what it says goes to a file, `said` reads it."""
        port = ["--port", str(free_port())] if arguments[0] in ("run", "ui") else []
        log = (self.root / f"command-{len(self.commands)}.txt").open("w")
        own = {"ELTA_TUNE_CACHE": str(self.cache), "PYTHONPATH": str(self.root / "hooks"), "COLUMNS": "100"}
        command = subprocess.Popen(
            [COMMAND, *arguments, *port],
            cwd=self.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", **own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        log.close()
        self.commands.append(command)
        return command

    def said(self, command: subprocess.Popen[str]) -> str:
        """What a command has said so far."""
        return (self.root / f"command-{self.commands.index(command)}.txt").read_text()

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs the command to its end: exit code and what it said."""
        command = self.start(*arguments, **environment)
        return command.wait(PATIENCE), self.said(command)

    def wait_for(self, condition: Callable[[], Any], command: subprocess.Popen[str] | None = None) -> Any:
        """Waits until a condition holds, and returns its value; fails if the command ends before."""
        until = time.monotonic() + PATIENCE
        while not (value := condition()):
            if command is not None and command.poll() is not None and not condition():
                raise AssertionError(f"the command ended:\n{self.said(command)}")
            if time.monotonic() > until:
                raise AssertionError("waited too long" + (f":\n{self.said(command)}" if command else ""))
            time.sleep(0.05)
        return value

    def address(self, command: subprocess.Popen[str]) -> tuple[str, int]:
        """The web UI's URL and port, once the command says them."""

        def printed_address() -> re.Match[str] | None:
            return re.search(r"http://127\.0\.0\.1:(\d+)/\w+/", self.said(command))

        found = printed_address() if command.poll() == 0 else self.wait_for(printed_address, command)
        assert found is not None
        return found[0], int(found[1])

    def processes(self, kind: str = "", study: str = "") -> list[psutil.Process]:
        """Processes but the commands that belong to a study here: all, or one kind (node, tuner, trial; no shells)."""
        marks = {
            "": str(self.root),
            "node": "main.js",
            "tuner": "-m nni --exp_params",
            "trial": "elta_tune.studies.nni.trial",
        }
        found = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                place = str(self.root / "runs" / study) if study else str(self.root)
                belongs = place in " ".join([line, *process.environ().values()])
                is_command = process.pid in [command.pid for command in self.commands]
                is_kind = not kind or (marks[kind] in line and process.name() != "sh")
                if belongs and is_kind and not is_command and process.pid != os.getpid():
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, kind: str, study: str) -> None:
        """kill -9 of the only process of a kind."""
        (process,) = self.processes(kind, study)
        process.kill()

    def epochs(self, study: str, number: int = 0) -> list[dict[str, Any]]:
        """The lines of a trial's metrics.jsonl."""
        file = self.root / "runs" / study / "trials" / f"{number:04d}" / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def results(self, study: str) -> dict[int, dict[str, Any]]:
        """result.json of each trial that has one."""
        files = sorted((self.root / "runs" / study / "trials").glob("*/result.json"))
        return {int(file.parent.name): json.loads(file.read_text()) for file in files}

    def query(self, study: str, sql: str) -> list[tuple[Any, ...]]:
        """Rows of NNI's own database."""
        file = self.root / "runs" / study / "nni" / "experiment" / "db" / "nni.sqlite"
        with closing(sqlite3.connect(file)) as database:
            return database.execute(sql).fetchall()

    def change(self, study: str, sql: str, value: dict[str, Any]) -> None:
        """Changes NNI's own database; `value` is given as JSON."""
        with (
            closing(sqlite3.connect(self.root / "runs" / study / "nni/experiment/db/nni.sqlite")) as database,
            database,
        ):
            database.execute(sql, [json.dumps(value)])

    def assert_nothing_left(self, port: int) -> None:
        """No process of any study here, and the port is closed."""
        assert [process.cmdline() for process in self.processes()] == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

    def close(self) -> None:
        """Ends what a failed test left."""
        for command in self.commands:
            if command.poll() is None:
                command.kill()
                command.wait()
        for process in self.processes():
            process.kill()


@pytest.fixture(scope="module")
def nni_studies(tmp_path_factory: pytest.TempPathFactory, data_root: Path, cache: Path) -> Iterator[NniStudies]:
    """A folder to run studies under NNI in, with the tiny recipe as `tiny.yaml`."""
    pytest.importorskip("nni_node", reason="NNI is not installed")
    recipe = {
        "data": {"root": str(data_root), "resize": 36, "crop": 32},
        "model": {"backbone": "test_efficientnet", "pretrained": False},
        "optim": {"lr": 3e-3},
        "training": {"epochs": 3, "batch_size": 8},
    }
    studies = NniStudies(tmp_path_factory.mktemp("nni"), recipe, cache)
    yield studies
    studies.close()
