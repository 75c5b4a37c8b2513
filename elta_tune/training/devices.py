"""Devices by their names: cpu, cuda, cuda:1, mps. What can be refused without torch is, before it is imported."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from elta_tune.errors import ModelError
from elta_tune.suggestions import did_you_mean

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "mps")
"""Kinds of devices that trainings run on; torch has others, and some of those compute nothing."""
NVIDIA = (
    "/dev/nvidiactl",
    "/dev/nvidia0",
    "/proc/driver/nvidia",
    "/dev/nvhost-gpu",
    "/dev/nvmap",
    "/dev/dxg",
    "/dev/kfd",
)
"""Without any of these, Linux has no driver for CUDA: a server's or a Jetson's, WSL's, or that of AMD's ROCm."""


def available_devices() -> list[str]:
    """Every GPU, or else the CPU."""
    import torch

    if count := torch.cuda.device_count():
        return [f"cuda:{index}" for index in range(count)]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def choose_device(name: str) -> str:
    """The device of that name; of `auto`, the first GPU, or else the CPU.

    Raises:
        ModelError: it is unavailable.
    """
    if name == "auto":
        return available_devices()[0]
    check_devices([name], argument="device")
    return name


def check_devices(names: Sequence[str], *, argument: str = "devices") -> None:
    """Refuses unavailable devices, without waking a GPU: that would take memory from the trials.

    Args:
        argument: of the API, which named them.

    Raises:
        ModelError: names the device.
    """
    check_names(names, argument=argument)
    for name in names:
        kind, _, index = name.partition(":")
        if kind != "cuda":
            device_of(name)
            continue
        import torch

        count = torch.cuda.device_count()
        if int(index or 0) >= count:
            known = f"cuda:0 to cuda:{count - 1}" if count > 1 else "cuda:0 only" if count else "no CUDA device"
            raise ModelError(f"`{argument}={name}`: this machine has {known}")


def check_names(names: Sequence[str], *, argument: str = "devices") -> None:
    """Refuses devices that are unavailable by all that can be known without torch.

    Raises:
        ModelError: names the device.
    """
    for name in names:
        if reason := _refusal(name):
            raise ModelError(f"`{argument}={name}`: {reason}")


def _refusal(name: str) -> str | None:
    kind = name.partition(":")[0]
    if not re.fullmatch(r"(cpu|cuda|mps)(:[0-9]+)?", name):
        digits = re.search(r"[0-9]+$", name)
        kind = name[: digits.start()].rstrip(":") if digits else kind
        number = digits[0] if digits else "0"
        if kind.lower() in ("", "gpu", "cuda", "nvidia", "rocm", "hip") and name:
            return f"unknown device; did you mean 'cuda:{number}'?"
        suggestion = did_you_mean(kind, KINDS) if name else ""
        return f"unknown device; choose from cpu, cuda:0 (or another number), mps{suggestion}"
    if kind == "mps" and sys.platform != "darwin":
        return "only macOS has mps devices"
    if kind == "cuda" and os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return "the variable CUDA_VISIBLE_DEVICES hides all CUDA devices"
    if kind == "cuda" and not may_have_cuda():
        return "this machine has no CUDA device: no driver is installed"
    return None


def may_have_cuda() -> bool:
    """Whether there may be a CUDA device: False only where there can't."""
    return sys.platform != "darwin" and (sys.platform != "linux" or any(map(os.path.exists, NVIDIA)))


def device_of(name: str) -> torch.device:
    """A device that works here.

    Raises:
        ModelError: it is unknown or unavailable.
    """
    if (refusal := _refusal(name)) is not None:
        raise ModelError(f"device {name!r}: {refusal}")
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a missing driver; the error says it
            torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"device {name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)
