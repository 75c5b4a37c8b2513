"""How long the largest rating file takes to read and check, and how much memory: all 255,502 images of AVA.

    uv run python benchmarks/readers.py [FILE]

Without a FILE that many rows are made up. The target: under 3 s and under 300 MB.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from elta_tune.config import DataConfig
from elta_tune.data.readers import read_ratings

ROWS = 255_502


def write_votes(file: Path) -> None:
    """Rows like AVA's: an id of six digits and ten counts of about 200 votes."""
    random = np.random.default_rng(0)
    shares = np.exp(-((np.arange(1, 11) - random.normal(5.4, 0.73, (ROWS, 1))) ** 2) / 4)
    votes = random.multinomial(200, shares / shares.sum(axis=1, keepdims=True))
    header = ",".join(["image_id", *(f"score{rating + 1}" for rating in range(1, 11))])
    rows = np.column_stack([np.arange(ROWS), votes])
    np.savetxt(file, rows, fmt="%d", delimiter=",", header=header, comments="")


def measure(file: Path) -> None:
    """Prints seconds, memory and the mean of what was read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    ratings = read_ratings(file, DataConfig())
    seconds = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
        2**20 if sys.platform == "darwin" else 2**10
    )
    assert ratings.scores is not None
    print(f"{file.name}: {len(ratings.ids):,} rows as {ratings.format}")
    print(f"  read and checked in {seconds:.2f} s; peak memory grew by {grown:.0f} MB")
    print(f"  mean MOS {ratings.scores.mean():.3f}, standard deviation {ratings.scores.std():.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "votes.csv"
        if len(sys.argv) == 1:
            write_votes(file)
        # In a process of its own, whose peak is not that of the writing.
        reading = multiprocessing.get_context("spawn").Process(target=measure, args=(file,))
        reading.start()
        reading.join()
        sys.exit(reading.exitcode)
