"""The model as ONNX: images in, scores and distributions out, with all that one must know to feed it."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elta_tune.errors import ConfigError, StudyError
from elta_tune.method.scores import from_method_scale
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.training.model import AestheticModel
from elta_tune.weights import METADATA_KEY

OPSET = 22
"""The newest operators that every onnxruntime runs that pyproject.toml allows (1.22 knows none of 23)."""


class Scorer(nn.Module):
    """The model with its normalisation before and its scale behind: the graph that is exported."""

    def __init__(self, model: AestheticModel, scale: tuple[float, float]) -> None:
        super().__init__()
        self.model, self.scale = model, scale
        # Not `mean`: operators' outputs bear such names in the graph, and each name may be there once.
        self.register_buffer("pixel_mean", model.mean[:, None, None])
        self.register_buffer("pixel_std", model.std[:, None, None])
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """RGB of 0…1, (B, 3, S, S) → score (B,) on the data set's scale and, with distributions, shares (B, K)."""
        _, logits = self.model((image - self.pixel_mean) / self.pixel_std)
        score = from_method_scale(self.model.head.scores(logits), self.scale)
        return (score,) if logits.shape[1] == 1 else (score, logits.softmax(dim=1))


def write_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Exports with a dynamic batch; the metadata hold preprocessing, outputs and the checkpoint's public facts.

    Raises:
        ConfigError: onnx is not installed.
        StudyError: torch can't export the backbone.
    """
    onnx, _ = _packages()
    outputs = ["score"] if checkpoint.bins is None else ["score", "distribution"]
    program = _program(checkpoint, outputs)
    program.save(path)
    model = onnx.load(path)
    for part in (*model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # torch's notes: the source lines and files on this machine that made each node
    onnx.helper.set_model_props(model, _metadata(checkpoint, outputs))
    onnx.save(model, path)


def _program(checkpoint: Checkpoint, outputs: list[str]) -> Any:
    scorer = Scorer(checkpoint.model(), checkpoint.scale).eval()
    size = checkpoint.config.data.crop
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, of the exporter's own parts
            return torch.onnx.export(
                scorer,
                (torch.rand(2, 3, size, size),),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["image"],
                output_names=outputs,
                external_data=False,
                verbose=False,
                optimize=False,  # a runtime optimises for its own machine when it loads the file
            )
    except Exception as error:  # each backbone has its own way to fail
        raise StudyError(f"torch can't export {checkpoint.config.model.backbone} to ONNX: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of what was wrong at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _metadata(checkpoint: Checkpoint, outputs: list[str]) -> dict[str, str]:
    size = checkpoint.config.data.crop
    preprocessing = {
        "color": "RGB, turned as EXIF says",
        "resize": {"size": [size, size], "mode": "squash", "interpolation": "bilinear (Pillow)"},
        "range": [0, 1],
        "layout": "NCHW",
        "normalization": "none: mean and std are part of the graph",
    }
    low, high = checkpoint.scale
    described = {"score": f"from {low:g} to {high:g}"}
    if "distribution" in outputs:
        bins = from_method_scale(np.array(checkpoint.bins), checkpoint.scale)
        described["distribution"] = f"shares of the ratings {', '.join(f'{rating:g}' for rating in bins)}"
    return {
        "preprocessing": json.dumps(preprocessing),
        "outputs": json.dumps(described, ensure_ascii=False),
        METADATA_KEY: json.dumps(checkpoint.public_facts()),
    }


def run_onnx(path: Path, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Runs an exported file in onnxruntime on the CPU, as its metadata say.

    Args:
        images: (B, S, S, 3).

    Returns:
        `score` (B,) and, with distributions, `distribution` (B, K).

    Raises:
        StudyError: it can't run it.
    """
    _, onnxruntime = _packages()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of each constant that it folds
    image = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {"image": image}), strict=True))
    except Exception as error:  # it has kinds of its own, which it does not document
        raise StudyError(f"onnxruntime can't run the exported model: {_reason(error)}") from error


def _packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter asks for it
    except ImportError as error:
        raise ConfigError(
            f"the format onnx needs {error.name}",
            "install the extra: pip install 'elta-tune[onnx]'",
        ) from None
    return onnx, onnxruntime
