"""Devices by name: existing ones work, all others are named and refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elta_tune.errors import ModelError
from elta_tune.training.devices import available_devices, check_devices, check_names, device_of, may_have_cuda


def test_cpu_is_always_available() -> None:
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
def test_device_that_is_missing_or_broken_is_refused(name: str, check: object) -> None:
    assert callable(check)
    with pytest.raises(ModelError) as caught:
        check(name)
    assert name in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an MPS device here")
def test_mps_is_refused_without_a_device() -> None:
    with pytest.raises(ModelError, match="mps"):
        check_devices(["mps"])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu", "cuda:0"),
        ("gpu:1", "cuda:1"),
        ("GPU2", "cuda:2"),
        ("1", "cuda:1"),
        ("cuda1", "cuda:1"),
        ("CUDA:0", "cuda:0"),
    ],
)
def test_a_synonym_of_a_gpu_suggests_its_name(name: str, expected: str) -> None:
    with pytest.raises(ModelError, match=rf"did you mean '{expected}'\?$"):
        check_names([name])


@pytest.mark.skipif(may_have_cuda(), reason="there may be a CUDA device here")
def test_cuda_is_refused_without_torch() -> None:
    code = """
import sys
from elta_tune.errors import ModelError
from elta_tune.training.devices import check_devices
try:
    check_devices(["cuda:0"])
except ModelError as error:
    print(error.message, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "`devices=cuda:0`: this machine has no CUDA device: no driver is installed False\n"


def test_hidden_cuda_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ModelError, match="CUDA_VISIBLE_DEVICES"):
        check_names(["cuda:0"])


def test_a_driver_leaves_the_answer_to_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("elta_tune.training.devices.NVIDIA", [str(tmp_path)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check_names(["cuda", "cuda:7", "cpu"])
