"""Evaluates a checkpoint file on a split: ``python -m elta_tune.results.measure FILE SPLIT CACHE DEVICE OUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from elta_tune.data.splits import SplitName
from elta_tune.errors import EltaTuneError
from elta_tune.records import write_json
from elta_tune.results.checkpoint import load_checkpoint
from elta_tune.results.evaluate import evaluate_model


def measure_checkpoint(checkpoint: Path, split: SplitName, cache: Path, device: str) -> dict[str, Any]:
    """Predictions and metrics of a checkpoint file on a split of the data that it was trained on.

    Raises:
        DataError: there is no such split.
    """
    loaded = load_checkpoint(checkpoint)
    found = evaluate_model(loaded, loaded.config.data, split, cache=cache, device=device)
    ids, scores = list(found.predictions.ids), found.predictions.scores.tolist()
    return {"metrics": found.metrics, "ids": ids, "scores": scores, "data": found.data}


def main(arguments: list[str]) -> int:
    """The command; a refusal is the last line of standard error."""
    checkpoint, split, cache, device, out = arguments
    try:
        write_json(Path(out), measure_checkpoint(Path(checkpoint), cast(SplitName, split), Path(cache), device))
    except EltaTuneError as error:
        print(error.message.replace("\n", "; "), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
