"""Devices by name: those that are here work, all others are refused by their name."""

from __future__ import annotations

import pytest
import torch

from elta_tune.errors import ModelError
from elta_tune.training.devices import available_devices, check_devices, device_of


def test_the_cpu_is_always_there() -> None:
    assert device_of("cpu") == torch.device("cpu")
    check_devices(["cpu", "cpu"])


def test_available_devices_are_the_gpus_or_else_the_cpu() -> None:
    names = available_devices()
    check_devices(names)
    assert all((torch.ones(2, device=device_of(name)) + 1).sum().item() == 4 for name in names)
    assert ("cpu" in names) == (not torch.cuda.is_available() and not torch.backends.mps.is_available())


@pytest.mark.parametrize(
    "name", ["cuda:99", "cuda:-1", "cuda:x", "gpu", "gpu:0", "", "cpu:x", "cudaa:0", "meta", "xpu"]
)
@pytest.mark.parametrize("check", [device_of, lambda name: check_devices(["cpu", name])])
def test_a_device_that_is_not_here_or_computes_nothing_is_refused(name: str, check: object) -> None:
    assert callable(check)
    with pytest.raises(ModelError) as caught:
        check(name)
    assert name in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device here")
def test_mps_is_refused_where_there_is_none() -> None:
    with pytest.raises(ModelError, match="mps"):
        check_devices(["mps"])
