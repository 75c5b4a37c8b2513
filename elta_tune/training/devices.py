"""Devices by their names: cpu, cuda, cuda:1, mps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from elta_tune.errors import ModelError
from elta_tune.suggestions import did_you_mean

KINDS = ("cpu", "cuda", "mps")
"""Kinds of devices that trainings run on; torch knows more, of which some compute nothing."""


def available_devices() -> list[str]:
    """Every GPU, or else the CPU."""
    if count := torch.cuda.device_count():
        return [f"cuda:{index}" for index in range(count)]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def choose_device(name: str) -> str:
    """The device of that name; of `auto`, the first GPU, or else the CPU.

    Raises:
        ModelError: it is not here.
    """
    device = available_devices()[0] if name == "auto" else name
    check_devices([device], argument="device")
    return device


def check_devices(names: Sequence[str], *, argument: str = "devices") -> None:
    """Refuses devices that are not here, without waking a GPU: that would take memory from the trials.

    Args:
        argument: of the API, which named them.

    Raises:
        ModelError: names the device.
    """
    for name in names:
        kind, _, index = name.partition(":")
        if kind == "cuda":
            count = torch.cuda.device_count()
            if (index and not index.isdecimal()) or int(index or 0) >= count:
                raise ModelError(f"`{argument}={name}`: there are {count} CUDA devices here")
        else:
            device_of(name)


def device_of(name: str) -> torch.device:
    """A device that works here.

    Raises:
        ModelError: there is no such device.
    """
    if name.partition(":")[0] not in KINDS:
        raise ModelError(f"device {name!r}: there are {', '.join(KINDS)}{did_you_mean(name, KINDS)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of a driver that is not there; the error says it
            torch.empty(1, device=name)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(f"device {name}: {str(error).splitlines()[0]}") from error
    return torch.device(name)
