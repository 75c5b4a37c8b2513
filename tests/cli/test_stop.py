"""`elta-tune stop` ends a study under Optuna from another terminal, as Ctrl-C does in its own."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from elta_tune.cli.run import hang_up
from elta_tune.studies.events import interruptible

COMMAND = str(Path(sys.executable).with_name("elta-tune"))
LR = "parameters:\n  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}\n"


def test_stop_ends_a_study_after_its_epoch_from_elsewhere(elta_tune, recipe_file, tmp_path, cache):
    (tmp_path / "lr.yaml").write_text(LR)
    arguments = [
        "run",
        "--space",
        "lr.yaml",
        "--recipe",
        "tiny.yaml",
        "--set",
        "training.epochs=2000",
        "--workers",
        "1",
    ]
    environment = {**os.environ, "ELTA_TUNE_CACHE": str(cache)}
    running = subprocess.Popen([COMMAND, *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        metrics = tmp_path / "runs" / "lr-tiny" / "trials" / "0000" / "metrics.jsonl"
        while not metrics.exists():
            assert running.poll() is None
            time.sleep(0.05)
        stopped = elta_tune("stop")
        assert running.wait(timeout=60) == 130  # its last threads may outlive it by a moment
    finally:
        running.kill()
        said = running.communicate()[0]
    assert (stopped.returncode, stopped.stdout) == (
        0,
        f"stopping study lr-tiny (process {running.pid})\nstudy lr-tiny is stopped\n",
    )
    assert "stopped; to go on:" in said
    assert elta_tune("stop", "lr-tiny").stdout == "study lr-tiny is not running\n"
    assert (metrics.parent / "last.ckpt").exists() and not (metrics.parent / "result.json").exists()


def test_settings_only_for_nni_are_refused_under_optuna(elta_tune, recipe_file, tmp_path):
    (tmp_path / "lr.yaml").write_text(LR)
    for option in (["--detach"], ["--port", "9000"]):
        refused = elta_tune("run", "--space", "lr.yaml", "--recipe", "tiny.yaml", *option)
        assert (refused.returncode, refused.stderr) == (2, f"elta-tune: {option[0]}: is for --backend nni\n")
    assert not (tmp_path / "runs").exists()


HOLD = "import sys, time; from pathlib import Path; from elta_tune.locks import hold\n"
HOLD += "with hold(Path(sys.argv[1])) as lock:\n"
HOLD += "    Path(sys.argv[1]).write_text(sys.argv[2]); print('held', flush=True); time.sleep(600)"


@pytest.mark.parametrize("host", ["elsewhere", platform.node()])
def test_process_that_reused_the_study_pid_is_not_signalled(elta_tune, recipe_file, tmp_path, host):
    """As on a folder that machines, or containers of one machine, share."""
    (tmp_path / "lr.yaml").write_text(LR)
    arguments = ("run", "--space", "lr.yaml", "--recipe", "tiny.yaml", "--trials", "1", "--name", "far")
    assert elta_tune(*arguments).returncode == 0
    lock = tmp_path / "runs" / "far" / "study.lock"
    with subprocess.Popen(["sleep", "600"]) as decoy:
        text = f"process {decoy.pid} on {host}"
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock), text], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "held\n"
            refused = elta_tune("stop", "far")
            assert (decoy.poll(), holder.poll()) == (None, None)
        finally:
            holder.kill()
            holder.communicate()
            decoy.kill()
    assert refused.returncode == 2
    known = f"study far runs as {text}\n  stop it there" if host == "elsewhere" else "study far still runs: "
    assert refused.stderr.startswith(f"elta-tune: {known}")


class TestHangUp:
    """The signal of a terminal that closes: it may come more than once."""

    def test_stops_a_study_as_ctrl_c_does(self):
        running = SimpleNamespace(interrupted=False)
        with interruptible(running, *hang_up()):
            signal.raise_signal(signal.SIGHUP)
            assert running.interrupted
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    def test_is_ignored_under_nohup(self):
        previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            assert hang_up() == ()
        finally:
            signal.signal(signal.SIGHUP, previous)
