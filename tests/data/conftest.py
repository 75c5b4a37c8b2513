"""What tests of data share: scripts that watch the memory of their process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PEAK = """
import re
from pathlib import Path

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""
"""Bytes of memory that a process has had at most. (`ru_maxrss` begins with its parent's.)"""


@pytest.fixture
def watched() -> Callable[..., list[int]]:
    """`watched(script, *arguments)`: the integers that a script prints, in which `peak()` is its most memory so far."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from Linux's /proc")

    def run(script: str, *arguments: object) -> list[int]:
        command = [sys.executable, "-c", PEAK + script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        return [int(word) for word in done.stdout.split()]

    return run
