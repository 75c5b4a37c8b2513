"""The number of usable cores."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elta_tune.cores import available_cores, container_cores


def test_only_cores_that_the_process_may_use_are_shared_out() -> None:
    count = "from elta_tune.cores import available_cores; print(available_cores())"
    core = str(min(os.sched_getaffinity(0)))
    done = subprocess.run(
        ["taskset", "-c", core, sys.executable, "-c", count], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", None), ("250000 100000", 2), ("50000 100000", 1), ("", None)]
)
def test_a_containers_quota_limits_the_cores(tmp_path: Path, content: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    assert container_cores(tmp_path / "cpu.max") == cores
    assert container_cores(tmp_path / "absent") is None
