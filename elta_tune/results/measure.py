"""Evaluates a checkpoint file on a split, in a process of its own:

python -m elta_tune.results.measure FILE SPLIT CACHE DEVICE THREADS OUT
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import open_dataset
from elta_tune.errors import DataError, EltaTuneError
from elta_tune.files import write_json
from elta_tune.models.checkpoint import load_checkpoint
from elta_tune.provenance import environment
from elta_tune.training.devices import device_of
from elta_tune.training.model import place
from elta_tune.training.predict import evaluate, predict
from elta_tune.trial import describe_data, out_of_memory_errors


def measure_checkpoint(checkpoint: Path, split: str, cache: ImageCache, device: str) -> dict[str, Any]:
    """Predictions and metrics of a checkpoint file on a split of the data that it was trained on.

    Raises:
        DataError: there is no such split.
        OutOfMemoryError: the device has not enough for it.
    """
    loaded = load_checkpoint(checkpoint)
    dataset = open_dataset(loaded.config.data, cache, splits=("train", "val", split))
    rows = getattr(dataset, split)
    if rows is None:
        raise DataError(f"there is no {split} split", f"name it: `data.{split}=FILE`")
    model, target = loaded.model(), device_of(device)
    with out_of_memory_errors():
        predictions = predict(place(model, target), rows, loaded.config, dataset.scale)
    return {
        "metrics": evaluate(predictions, rows, dataset.rating_scale),
        "ids": list(predictions.ids),
        "scores": predictions.scores.tolist(),
        "data": {name: asdict(split) for name, split in describe_data(dataset).items()},
        "environment": asdict(environment(device)),
    }


def main(arguments: list[str]) -> int:
    """The command; a refusal is the last line of standard error."""
    checkpoint, split, cache, device, threads, out = arguments
    torch.set_num_threads(int(threads))
    try:
        write_json(Path(out), measure_checkpoint(Path(checkpoint), split, ImageCache(Path(cache)), device))
    except EltaTuneError as error:
        print(error.message.replace("\n", "; "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
