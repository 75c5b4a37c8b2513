"""Weights in files of whatever origin, read without ever running code that is in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import scalar as numpy_scalar
from safetensors import safe_open
from safetensors.torch import load_file

from elta_tune.errors import ModelError

NUMPY_SCALARS: list[Any] = [
    (numpy_scalar, "numpy.core.multiarray.scalar"),  # the name that NumPy 1 wrote
    (numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in "fdilqIQ?"),
]
"""Metrics in released checkpoints are NumPy's numbers: these globals rebuild numbers and nothing else."""
READ_BACK = "evaluate and predict take ckpt, safetensors or hf"
"""Said of exports that are for other programs."""


def read_weights_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a safetensors or torch file, and the metadata of a safetensors file.

    Raises:
        ModelError: the file can't be read, is cut short or damaged, is no weights file, or would have to run code to be
            read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    if path.suffix.lower() == ".onnx":
        raise ModelError(f"{path}: an ONNX file is for other programs", READ_BACK)
    try:
        if start[8:9] == b"{":  # the length of a header in eight bytes, then the header, in JSON
            with safe_open(path, framework="pt") as opened:
                metadata = dict(opened.metadata() or {})
            return load_file(path), metadata
        if start.startswith(b"PK"):
            _check_sums(path)
        with torch.serialization.safe_globals(NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's oddities; what counts is whether it can be read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _unpickling_refused(path, str(error)) from error
    except Exception as error:  # a damaged or hostile file may raise anything; that it is unreadable is all that counts
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ModelError(f"{path}: cut short, damaged, or no checkpoint: {reason}", "copy the file again") from error
    if not isinstance(content, Mapping):
        raise ModelError(f"{path}: no checkpoint: holds a {type(content).__name__}, not weights by name")
    return dict(content), {}


def _check_sums(path: Path) -> None:
    """Refuses a torch file, a zip archive, of which bytes were changed; torch itself does not look.

    Raises:
        BadZipFile: names the first wrong member; or there is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        # under torch.serialization.set_crc32_options(False) torch writes zeros, which say nothing
        if any(member.CRC for member in archive.infolist()) and (wrong := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{wrong} has not the bytes of its checksum")


def _unpickling_refused(path: Path, said: str) -> ModelError:
    """torch names the first thing in the file that is neither a tensor nor a plain value."""
    named = re.search(r"GLOBAL (\w\S*)", said)
    if named is None:
        return ModelError(f"{path}: no checkpoint: holds something else than tensors by name")
    return ModelError(
        f"{path}: reading it would run code of its own ({named[1]}): refused, and nothing of it was run",
        "a file of weights alone is read: torch.save(model.state_dict(), FILE)",
    )
