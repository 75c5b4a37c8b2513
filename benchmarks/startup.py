"""How soon things start: a trial's process against a fresh interpreter, and `--help` against Python alone.

    uv run python benchmarks/startup.py [--repeats 7]

A trial's process comes from the forkserver: its first import is paid once per study, and told apart. What is timed is
what a trial's log calls "started in": from the supervisor's asking to the first line of the trial's own work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from elta_tune.config import TrialConfig
from elta_tune.executors import Job
from elta_tune.executors.local import PRELOAD, LocalExecutor, Slot

ELTA_TUNE = str(Path(sys.executable).with_name("elta-tune"))


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def start_trial(executor: LocalExecutor, folder: Path) -> None:
    """Starts a trial that is refused at once (it has no data), and waits until its process has said so and is gone."""
    config = TrialConfig.model_validate({"data": {"root": str(folder)}})
    executor.start(Job(0, config, {}, Path(tempfile.mkdtemp(dir=folder)), folder / "cache"))
    while executor.running:
        executor.wait(10)


def told_start(folder: Path) -> float:
    """Seconds that the log of the last trial tells."""
    log = max(folder.glob("*/log.txt"), key=lambda path: path.stat().st_mtime_ns)
    return float(log.read_text().partition("started in ")[2].split()[0])


def main() -> None:
    """Prints medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = range(parser.parse_args().repeats)
    imports = f"import {', '.join(PRELOAD)}"
    fresh = median(seconds(lambda: subprocess.run([sys.executable, "-c", imports], check=True)) for _ in repeats)
    with tempfile.TemporaryDirectory() as name:
        folder, executor, starts = Path(name), LocalExecutor([Slot("cpu", 1)]), []
        first = seconds(lambda: start_trial(executor, folder))
        for _ in repeats:
            start_trial(executor, folder)
            starts.append(told_start(folder))
    trial = median(starts)
    help_ = [ELTA_TUNE, "--help"]
    shown = median(seconds(lambda: subprocess.run(help_, stdout=subprocess.DEVNULL, check=True)) for _ in repeats)
    bare = median(seconds(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)) for _ in repeats)
    print(f"a fresh interpreter that imports what a trial needs  {fresh:7.3f} s")
    print(f"the first trial, which waits for the forkserver      {first:7.3f} s")
    print(f"a trial's process after it                           {trial:7.3f} s  {fresh / trial:.0f} times as fast")
    print(f"python -c pass                                       {bare:7.3f} s")
    print(f"elta-tune --help                                     {shown:7.3f} s  {shown / bare:.1f} times as long")


if __name__ == "__main__":
    main()
