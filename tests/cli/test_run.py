"""`elta-tune run`: a study starts, ends, and resumes after any end."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

RUN = ("run", "--space", "space.yaml", "--recipe", "tiny.yaml", "--set", "training.epochs=5")
PATIENCE = 120.0
"""Seconds after which what should happen has not."""
TIMES = ("seconds", "elapsed", "images_per_second", "peak_memory_mb")
"""What a line of metrics has that no seed decides."""

Run = Callable[..., subprocess.CompletedProcess[str]]


class Command:
    """A command that runs in a process group of its own, as a terminal gives it one."""

    def __init__(self, line: str, folder: Path, cache: Path) -> None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "COLUMNS": "80", "PATH": path}
        self.output_file, self.error_file = folder / "output.txt", folder / "errors.txt"
        with self.output_file.open("w") as output, self.error_file.open("w") as errors:
            self.process = subprocess.Popen(
                shlex.split(line), cwd=folder, env=environment, stdout=output, stderr=errors, start_new_session=True
            )
        self.others: list[psutil.Process] = []
        """All processes that it started, as of the last `wait_for`."""

    @property
    def output(self) -> str:
        return self.output_file.read_text()

    @property
    def errors(self) -> str:
        return self.error_file.read_text()

    def wait_for(self, pattern: str) -> None:
        """Until it has printed that."""
        self.freeze_at(pattern)
        self.signal(signal.SIGCONT)

    def freeze_at(self, pattern: str) -> None:
        """Waits until it has printed that, then suspends it."""
        self.wait_until(lambda: re.search(pattern, self.output) is not None)
        self.signal(signal.SIGSTOP)
        self.others = psutil.Process(self.process.pid).children(recursive=True)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, self.output + self.errors
            assert time.monotonic() < deadline, self.output + self.errors
            time.sleep(0.01)

    def signal(self, number: int) -> None:
        """To the whole group, as Ctrl-C is."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Waits until it, and all that it started, is gone; returns the exit code."""
        code = self.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(other.is_running() and other.status() != psutil.STATUS_ZOMBIE for other in self.others):
            assert time.monotonic() < deadline, "something is left running"
            time.sleep(0.05)
        return code


@pytest.fixture
def start(files: Path, cache: Path) -> Iterator[Callable[[str], Command]]:
    """Starts a command line."""
    started: list[Command] = []

    def begin(line: str) -> Command:
        started.append(Command(line, files, cache))
        return started[-1]

    yield begin
    for command in started:
        if command.process.poll() is None:
            command.signal(signal.SIGKILL)
            command.process.wait()


def table(study: Path) -> list[tuple[Any, ...]]:
    """Parameters and metrics of all trials, and their curves."""
    rows = []
    for folder in sorted((study / "trials").iterdir()):
        result = json.loads((folder / "result.json").read_text())
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curve = [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
        rows.append((result["trial"], result["params"], result["state"], result["metrics"], curve))
    return rows


def states(study: Path) -> list[tuple[int, str]]:
    connection = sqlite3.connect(study / "study.db")
    found = connection.execute("select number, state from trials order by number").fetchall()
    connection.close()
    return found


def way_on(command: Command) -> str:
    """The command line that it prints to resume."""
    found = re.search(r"to go on(?:, each trial from its last epoch)?:\n  (.*)", command.output)
    assert found is not None, command.output + command.errors
    return found[1]


def epochs(output: str, trial: int) -> list[int]:
    """The printed epochs of a trial of one round, in order."""
    return [int(epoch) for epoch in re.findall(rf"trial +{trial}  (?:round 0  )?epoch (\d+)/5", output)]


def test_study_resumes_after_any_end(start: Callable[[str], Command], elta_tune: Run, finished: Path) -> None:
    """Ctrl-C, kill -9 of the whole group, kill -9 of the supervisor alone, and Ctrl-C twice while a trial hangs."""
    study, outputs = finished.parent / "again", []
    command = start(shlex.join(["elta-tune", *RUN, "--name", "again"]))
    command.freeze_at(r"trial   0  epoch 2/5")
    second = elta_tune(*RUN, "--name", "again")
    command.signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"study again is already running (process {command.process.pid})" in second.stderr
    command.wait_for(r"trial   1 .*epoch 1/5")
    command.signal(signal.SIGINT)
    assert command.end() == 130
    line = way_on(command)
    outputs.append(command.output)

    command = start(line)
    command.wait_for(r"trial   2 .*epoch [2-5]/5")
    command.signal(signal.SIGKILL)
    assert command.end() == -signal.SIGKILL
    outputs.append(command.output)

    command = start(line)
    command.wait_for(r"trial   2 .*epoch [3-5]/5")
    command.process.kill()
    assert command.end() == -signal.SIGKILL
    outputs.append(command.output)

    command = start(line)
    command.freeze_at(r"trial   3 .*epoch [1-5]/5")
    own = psutil.Process(command.process.pid)
    for process in (own, *own.children()):  # the server: all but the trials
        process.resume()
    command.signal(signal.SIGINT)
    command.wait_for("stopping after this epoch")
    command.signal(signal.SIGINT)
    assert command.end() == 130
    assert "stopped at once" in command.output
    assert way_on(command) == line
    outputs.append(command.output)
    assert "Traceback" not in command.errors

    command = start(line)
    assert command.end() == 0
    outputs.append(command.output)
    assert "goes on: " in outputs[-1]
    assert states(study) == [(number, "COMPLETE") for number in range(4)]
    assert table(study) == table(finished)
    for trial in range(4):
        runs = [found for output in outputs if (found := epochs(output, trial))]
        for before, after in itertools.pairwise(runs):
            assert after[0] >= before[-1]  # it was printed again, not trained again


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, "elta-tune stop"])
def test_interrupted_preparation_leaves_no_file_and_a_hint(
    by: signal.Signals | str, start: Callable[[str], Command], elta_tune: Run, files: Path
) -> None:
    command = start(shlex.join(["elta-tune", *RUN]))
    own = psutil.Process(command.process.pid)
    command.wait_until(lambda: len(own.children()) == 1)  # the server that trials are forked from
    command.others = own.children()
    if isinstance(by, signal.Signals):
        command.signal(by)
    else:
        assert elta_tune("stop", "space-tiny").returncode == 0
    assert command.end() == 130
    assert way_on(command) == shlex.join(["elta-tune", *RUN])
    assert command.errors == ""
    assert not (files / "runs" / "space-tiny").exists()


def test_finished_study_continues_only_with_more_trials(elta_tune: Run, finished: Path) -> None:
    before = table(finished)
    done = elta_tune(*RUN)
    assert done.returncode == 0
    assert done.stdout.startswith("study space-tiny is finished: 4 of 4 trials\n")
    assert "--trials raises the budget" in done.stdout
    assert table(finished) == before
    more = elta_tune(*RUN, "--trials", "5")
    assert more.returncode == 0
    assert "5 of 5 trials" in more.stdout
    assert table(finished)[:4] == before
    assert states(finished) == [(number, "COMPLETE") for number in range(5)]
    assert elta_tune(*RUN).stdout.startswith("study space-tiny is finished: 5 of 5 trials\n")  # the budget stays raised


def test_trial_killed_after_its_result_is_completed(elta_tune: Run, finished: Path) -> None:
    connection = sqlite3.connect(finished / "study.db")
    connection.execute("update trials set state = 'RUNNING', datetime_complete = null where number = 3")
    connection.execute("delete from trial_values where trial_id = (select trial_id from trials where number = 3)")
    connection.commit()
    connection.close()
    assert "is finished" in elta_tune(*RUN).stdout
    assert states(finished) == [(number, "COMPLETE") for number in range(4)]


def test_end_shows_best_trials_folder_and_next_command(finished: Path) -> None:
    output = (finished.parents[1] / "output.txt").read_text()
    ranking = sorted(table(finished), key=lambda row: -row[3]["srcc"])
    shown = output[output.index("trial  state") :]
    assert [int(number) for number in re.findall(r"^ +(\d+)  complete", shown, re.MULTILINE)] == [
        row[0] for row in ranking
    ]
    for name in ("srcc", "plcc", "accuracy"):
        assert name in shown
    assert f"best: trial {ranking[0][0]}" in shown
    assert "folder: " in shown
    assert shown.endswith("next:\n  elta-tune best space-tiny --export ckpt\n")
    assert max(len(line) for line in output.splitlines() if "/runs/space-tiny" not in line) <= 80


def test_messages_offer_the_command_as_it_was_typed(elta_tune: Run, finished: Path) -> None:
    assert "\n  uv run elta-tune best space-tiny --export ckpt" in elta_tune(*RUN, env={"UV": "/usr/bin/uv"}).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--runs", "tiny.yaml"), "tiny.yaml/space-tiny: can't be written"),
        (("--name", ".."), "--name ..: is empty"),
        (("--name", "a/b"), "--name a/b: has a separator of folders"),
        (("--name", "a\nb"), "--name 'a\\nb': has a character that can't be seen"),
        (("--workers", "0"), "--workers 0: should be a number from 1 on, or auto"),
        (("--workers", "two"), "--workers two: should be a number from 1 on, or auto"),
    ],
)
def test_where_a_study_cannot_run_it_is_refused(
    elta_tune: Run, files: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = elta_tune(*RUN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (files / "runs" / "space-tiny").exists()


@pytest.mark.parametrize(
    ("redirection", "encoding"),
    [("| head -1", "utf-8"), ("> /dev/full", "utf-8"), (">&- 2>&-", "utf-8"), ("", "ascii")],
)
def test_study_continues_without_its_output(files: Path, cache: Path, redirection: str, encoding: str) -> None:
    environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache), "PYTHONIOENCODING": encoding}
    line = f"{shlex.join([sys.executable, '-m', 'elta_tune', *RUN, '--trials', '2'])} {redirection}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], cwd=files, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert states(files / "runs" / "space-tiny") == [(0, "COMPLETE"), (1, "COMPLETE")]
