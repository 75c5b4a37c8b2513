"""Files of weights, of whatever origin: read without ever running code that is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from elta_tune.errors import ModelError

PLAIN_VALUES: list[Any] = [
    *((multiarray.scalar, f"{package}.multiarray.scalar") for package in ("numpy.core", "numpy._core")),
    *((multiarray._reconstruct, f"{package}.multiarray._reconstruct") for package in ("numpy.core", "numpy._core")),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["All"]},
    Namespace,
]
"""Globals that only rebuild numbers, arrays and options; NumPy 1 wrote the former of the two packages."""
METADATA_KEY = "elta_tune"
"""Of the metadata of our safetensors and ONNX files: everything but the weights, in JSON."""
IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")
"""The files of weights in a folder of Hugging Face's layout."""
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "network")
"""Keys under which checkpoints of trainings hold their weights, averaged ones first, as in timm."""
DEEPEST = 3
"""Levels of mappings, and of prefixes of names, that are searched for weights."""
RESAVE = "load it where it was made, then save its weights: `torch.save(model.state_dict(), FILE)`"
FETCH = "fetch the file again: `git lfs pull`, or its download link"
FOREIGN_STARTS = {
    b"\x89HDF\r\n\x1a\n": "HDF5 (Keras)",
    b"GGUF": "GGUF",
    b"\x1f\x8b": "gzip",
    b"version https://git-lfs": "a pointer of Git LFS",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
NOT_THE_FILE = ("a pointer of Git LFS", "a web page")
"""What is downloaded in place of a file."""
FOREIGN_SUFFIXES = {
    ".onnx": "ONNX",
    ".h5": "HDF5 (Keras)",
    ".keras": "Keras",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".msgpack": "Flax",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".engine": "TensorRT",
    ".mlmodel": "Core ML",
    ".json": "JSON",
    ".yaml": "YAML",
}


def weights_file(path: Path) -> Path:
    """The file of weights that a path names: itself, or the one in a folder of Hugging Face's layout.

    Raises:
        ModelError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    found = next((path / name for name in IN_A_FOLDER if (path / name).is_file()), None)
    if found is None:
        raise ModelError(f"{path}: a folder without {' or '.join(IN_A_FOLDER)}", "name the file of weights")
    return found


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a safetensors or torch file, and the metadata of a safetensors file.

    Raises:
        ModelError: the file can't be read, is cut short or damaged, is of another kind, or would have to run code to be
            read.
    """
    path = weights_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    _refuse_foreign(path, start)
    try:
        if start[8:9] == b"{":  # the length of a header in eight bytes, then the header, in JSON
            with safe_open(path, framework="pt") as opened:
                metadata = dict(opened.metadata() or {})
            return load_file(path), metadata
        if start.startswith(b"PK"):
            _check_archive(path)
        with torch.serialization.safe_globals(PLAIN_VALUES), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's oddities; what counts is whether it can be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _unpickling_refused(path, str(error)) from error
    except ModelError:
        raise
    except Exception as error:  # a damaged or hostile file may raise anything; that it is unreadable is all that counts
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ModelError(f"{path}: cut short, damaged, or no checkpoint: {reason}", "copy the file again") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: no checkpoint: holds a {type(content).__name__}, not weights by name")
    return dict(content), {}


def weight_sets(content: Mapping[str, Any], depth: int = DEEPEST) -> Iterator[dict[str, Tensor]]:
    """All mappings from names to tensors in a checkpoint, the likeliest first; arrays of NumPy become tensors."""
    first = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    inner = [*first, *(value for key, value in content.items() if isinstance(value, Mapping) and key not in WRAPPERS)]
    for mapping in inner if depth else ():
        yield from weight_sets(mapping, depth - 1)
    tensors = {
        str(name): _as_tensor(value) for name, value in content.items() if isinstance(value, Tensor | np.ndarray)
    }
    if tensors:
        yield tensors


def without_prefixes(weights: Mapping[str, Tensor]) -> Iterator[list[dict[str, Tensor]]]:
    """The weights by their names; then, by level, those below each prefix (``module.``, ``model.backbone.``)."""
    yield [dict(weights)]
    for depth in range(1, DEEPEST + 1):
        below: dict[str, dict[str, Tensor]] = {}
        for name, value in weights.items():
            *prefix, rest = name.split(".", depth)
            if len(prefix) == depth:
                below.setdefault(".".join(prefix), {})[rest] = value
        yield list(below.values())


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))


def _refuse_foreign(path: Path, start: bytes) -> None:
    """Refuses other kinds of files by their first bytes or their name.

    Raises:
        ModelError: says which kind it is, and what to do.
    """
    is_safetensors = start[8:9] == b"{"  # the length of its header may begin as anything
    starts = {} if is_safetensors else FOREIGN_STARTS
    kind = next((kind for known, kind in starts.items() if start.lower().startswith(known.lower())), None)
    kind = kind or FOREIGN_SUFFIXES.get(path.suffix.lower())
    if kind is not None:
        hint = FETCH if kind in NOT_THE_FILE else RESAVE
        raise ModelError(f"{path}: {kind} is not read; weights are read from safetensors and torch files", hint)
    if not start:
        raise ModelError(f"{path}: the file is empty", FETCH)


def _check_archive(path: Path) -> None:
    """Refuses programs of TorchScript, and torch files, zip archives, of which bytes were changed: torch does not look.

    Raises:
        ModelError: it is a program.
        BadZipFile: names the first wrong member; or the file is not an archive.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ModelError(f"{path}: a program of TorchScript is not read", RESAVE)
        # under torch.serialization.set_crc32_options(False) torch writes zeros, which say nothing
        if any(member.CRC for member in archive.infolist()) and (wrong := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{wrong} has not the bytes of its checksum")


def _unpickling_refused(path: Path, said: str) -> ModelError:
    """torch names the first thing in the file that is neither a tensor nor a plain value."""
    named = re.search(r"GLOBAL (\w\S*)", said)
    if named is None:
        return ModelError(f"{path}: no checkpoint: holds something else than tensors by name", RESAVE)
    return ModelError(f"{path}: refused: reading it would run its own code ({named[1]}); none of it was run", RESAVE)
