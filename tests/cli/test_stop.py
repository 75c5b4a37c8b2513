"""`elta-tune stop` ends a study of Optuna's from another terminal, as Ctrl-C does in its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

COMMAND = str(Path(sys.executable).with_name("elta-tune"))
LR = "parameters:\n  optim.lr: {type: float, low: 0.1x, high: 10x, log: true}\n"


def test_a_study_is_stopped_after_its_epoch_from_another_terminal(elta_tune, recipe_file, tmp_path, cache):
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
        assert running.wait(timeout=5) == 130  # its last threads may outlive it by a moment
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


def test_what_is_nnis_alone_is_refused_to_optuna(elta_tune, recipe_file, tmp_path):
    (tmp_path / "lr.yaml").write_text(LR)
    for option in (["--detach"], ["--port", "9000"]):
        refused = elta_tune("run", "--space", "lr.yaml", "--recipe", "tiny.yaml", *option)
        assert (refused.returncode, refused.stderr) == (2, f"elta-tune: {option[0]}: is for --backend nni\n")
    assert not (tmp_path / "runs").exists()
