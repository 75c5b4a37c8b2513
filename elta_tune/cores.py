"""How many cores there are to use, which may be fewer than the machine has."""

from __future__ import annotations

from pathlib import Path

import psutil


def available_cores() -> int:
    """Cores that this process may use: those that it is bound to, up to its container's quota."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    cores = len(allowed) if allowed else psutil.cpu_count() or 1
    return min(cores, container_cores() or cores)


def container_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Whole cores that a container's quota allows (cgroup v2), or None where there is none."""
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
