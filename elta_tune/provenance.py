"""Where and by what a result was made: versions, commit, device."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from elta_tune.records import Environment

PACKAGES = ("elta-tune", "torch", "timm", "optuna", "numpy", "pandas", "scipy", "pillow")
"""What decides numbers."""


def environment(device: str) -> Environment:
    """Where a result is measured, by this process on a device."""
    import torch

    kind = torch.device(device).type
    return Environment(
        device=device,
        device_name=torch.cuda.get_device_name(device) if kind == "cuda" else processor(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages=versions(),
        commit=commit(),
        host=platform.node(),
        process=os.getpid(),
    )


def processor() -> str:
    """The CPU's model, as far as the system says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """The versions of the packages that decide numbers."""
    return {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The git commit of the source that runs, or None where it is not a checkout of its own."""
    here = Path(__file__).parents[1]
    if not (here / ".git").exists():  # installed: a repository around it is another project's
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
