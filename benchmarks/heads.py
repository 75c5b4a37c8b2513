"""How much faster heads on a frozen backbone's features are tried than the whole is trained, and what either reaches.

    uv run python benchmarks/heads.py DATA_ROOT WEIGHTS [--backbone tf_efficientnet_lite0] [--trials 100] [--size 128]

A study of `head.yaml` on `own.yaml`, then the same recipe trained once in full. Both find their images decoded; the
study computes its features itself. SRCC is that of the best validation epoch's weights on the test split.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import elta_tune
from elta_tune.config import load_recipe
from elta_tune.cores import available_cores
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
from elta_tune.documents import find_document


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds it takes."""
    started = time.perf_counter()
    return work(), time.perf_counter() - started


def main() -> None:
    """Prints seconds, trials an hour, the ratio of a full training to a head trial, and both SRCC."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="DATA_ROOT")
    parser.add_argument("weights", metavar="WEIGHTS")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    options = parser.parse_args()
    data = {"data.root": options.root, "data.resize": options.size, "data.crop": options.size}
    overrides = {**data, "model.backbone": options.backbone, "model.weights": str(Path(options.weights).absolute())}
    with tempfile.TemporaryDirectory() as folder:
        places: dict[str, Any] = {"runs": Path(folder), "cache": Path(folder) / "cache"}
        recipe = load_recipe(find_document("own.yaml", "trials"), overrides)
        prepare(recipe.data, ImageCache(places["cache"]))
        cores = available_cores()
        study, seconds = measured(
            lambda: elta_tune.run(
                "head.yaml",
                "own.yaml",
                overrides={**overrides, "model.freeze": True},
                trials=options.trials,
                workers=cores,
                devices=["cpu"],
                **places,
            )
        )
        out = Path(folder) / "full"
        _, full = measured(lambda: elta_tune.train(recipe, out=out, device="cpu", **places))
        srcc = {
            name: elta_tune.evaluate(model, split="test", device="cpu", **places).metrics["srcc"]
            for name, model in (("head", study.path), ("full", out))
        }
    told = f"{options.trials} head trials on {cores} cores"
    print(
        f"{told:<32} {seconds:7.1f} s   {3600 * options.trials / seconds:6,.0f} an hour   test SRCC {srcc['head']:.4f}"
    )
    ratio = full * options.trials / seconds
    print(f"{'one full training':<32} {full:7.1f} s   {ratio:6.0f} head trials' time   test SRCC {srcc['full']:.4f}")


if __name__ == "__main__":
    main()
