"""Files of weights from any source: what is read, what is refused, and that no code in them is run."""

from __future__ import annotations

import os
import pickle
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elta_tune.errors import ModelError
from elta_tune.weights import read_weights, weight_sets, without_prefixes


class Intruder:
    """A pickle of it would create a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


WEIGHTS = {"vit.norm.weight": torch.ones(8)}


def write_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps({"state_dict": WEIGHTS, "args": Intruder(mark)}))


def write_old_pickle(file: Path, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Intruder(mark), protocol=2))


def write_new_torch(file: Path, mark: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "args": Intruder(mark)}, file)


def write_old_torch(file: Path, mark: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "args": Intruder(mark)}, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [write_pickle, write_old_pickle, write_new_torch, write_old_torch])
def test_pickle_that_would_run_code_is_refused(
    write: Callable[[Path, Path], None], tmp_path: Path, command: Callable[..., Any]
) -> None:
    file, mark = tmp_path / "intruder.pth", tmp_path / "mark"
    write(file, mark)
    with pytest.raises(ModelError, match=r"would run its own code|holds something else than tensors"):
        read_weights(file)
    refused = command("predict", file, tmp_path)
    assert refused.returncode == 2
    assert not mark.exists()
    if write in (write_pickle, write_old_pickle):
        pickle.loads(file.read_bytes())  # the file would have done it
        assert mark.exists()


def test_pickled_model_is_refused_by_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"torch\.nn\.modules\.linear\.Linear") as refused:
        read_weights(tmp_path / "model.pth")
    assert "state_dict()" in str(refused.value.hint)


def save_new_torch(state: dict[str, torch.Tensor], file: Path) -> None:
    torch.save({"state_dict": state}, file)


def save_old_torch(state: dict[str, torch.Tensor], file: Path) -> None:
    torch.save({"state_dict": state}, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("save", [save_new_torch, save_old_torch, save_file])
def test_file_cut_short_anywhere_is_refused(save: Callable[..., None], tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    save(WEIGHTS, file)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.pth: .*(checkpoint|would run its own code|empty)"):
            read_weights(file)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(40), b'{"vit": 1}', b"image_id,score\na,1\n", bytes(100)]
)
def test_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.pth"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"other\.pth"):
        read_weights(file)


@pytest.mark.parametrize(
    "value",
    [
        *map(np.float64, (0.5,)),
        np.float32(0.5),
        np.float16(0.5),
        np.int64(3),
        np.uint8(3),
        np.bool_(True),
        np.arange(3),
    ],
    ids=lambda value: type(value).__name__ + str(value.dtype),
)
def test_numbers_and_options_of_trainings_are_read(value: np.generic, tmp_path: Path) -> None:
    file = tmp_path / "numbers.pth"
    torch.save({"a": torch.ones(1), "value": value, "args": Namespace(lr=0.1)}, file)
    content, _ = read_weights(file)
    assert content["args"].lr == 0.1
    assert type(content["value"]) is type(value)
    np.testing.assert_array_equal(content["value"], value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("w.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), r"HDF5 \(Keras\) is not read"),
        ("w.pth", b"\x89HDF\r\n\x1a\n" + bytes(40), r"HDF5 \(Keras\) is not read"),
        ("w.onnx", b"\x08\x0a" + bytes(40), "ONNX is not read"),
        ("w.pth", b"<!doctype html><html></html>", "a web page is not read"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS is not read"),
        ("w.npz", b"PK\x03\x04" + bytes(40), "NumPy is not read"),
        ("w.bin", b"GGUF" + bytes(40), "GGUF is not read"),
    ],
)
def test_file_of_another_tool_is_named(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: {reason}") as refused:
        read_weights(tmp_path / name)
    assert ("git lfs pull" if "lfs" in reason.lower() or "web" in reason else "torch.save") in str(refused.value.hint)


def test_program_of_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch gives TorchScript up
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(ModelError, match=r"program\.pt: a program of TorchScript is not read"):
        read_weights(tmp_path / "program.pt")


def test_folder_of_hugging_face_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a folder without model\.safetensors or pytorch_model\.bin"):
        read_weights(tmp_path)
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path)[0].keys() == WEIGHTS.keys()


def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ModelError, match=r"pipe\.pth: not a regular file"):
        read_weights(tmp_path / "pipe.pth")


def test_sets_of_weights_are_found_in_any_nesting() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    content = {"epoch": 1, "x": {"y": {"a": one}}, "model": {"module.b.c": two}, "state_dict_ema": {"d": one}}
    sets = list(weight_sets(content))
    assert [list(found) for found in sets] == [["d"], ["module.b.c"], ["a"]]
    assert [[list(found) for found in level] for level in without_prefixes(sets[1])] == [
        [["module.b.c"]],
        [["b.c"]],
        [["c"]],
        [],
    ]
