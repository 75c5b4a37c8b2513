"""How fast training batches leave the cache, against a worker that decodes its JPEGs in every epoch; on one core.

    uv run python benchmarks/batches.py [--images 600]

A batch is 48 random crops of 256 px from 300 px, mirrored by chance and normalised, as the training loop takes it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elta_tune.data.batches import augment, epoch_order, normalize, prefetch
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.packs import Images
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.demo import Grades, photograph

BATCH, RESIZE, CROP = 48, 300, 256
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def write_photographs(folder: Path, count: int) -> list[str]:
    """JPEGs of 640×480, of a few of the demo's scenes with grain."""
    folder.mkdir()
    scenes = [photograph(Grades(*[0.5] * 5), 320, np.random.default_rng(seed)) for seed in range(8)]
    for number in range(count):
        random = np.random.default_rng(number)
        image = np.asarray(Image.fromarray(scenes[number % len(scenes)]).resize((640, 480)))
        pixels = image + random.normal(0, 8, (480, 640, 1))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


def from_cache(images: Images, generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch's batches as the training loop takes them."""
    order = epoch_order(len(images), BATCH, generator)
    for _, batch in prefetch(images, order, torch.device("cpu"), lambda batch: augment(batch, CROP, generator)):
        yield normalize(batch, MEAN, STD)


def from_files(files: list[str], generator: torch.Generator) -> Iterator[Tensor]:
    """An epoch's batches by decoding: resize, mirror, crop, normalise each image, as the released code does."""
    for rows in epoch_order(len(files), BATCH, generator):
        batch = []
        for row in rows:
            image = Image.open(files[row]).convert("RGB").resize((RESIZE, RESIZE), Image.Resampling.BILINEAR)
            if torch.rand(1, generator=generator) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            left, top = torch.randint(RESIZE - CROP + 1, (2,), generator=generator).tolist()
            pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)))
            batch.append(
                (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255 - MEAN[:, None, None])
                / STD[:, None, None]
            )
        yield torch.stack(batch)


def speed(epoch: Callable[[], Iterator[Tensor]], repeats: int) -> tuple[float, float]:
    """Images per second on the clock, and per second of the core; the best of some epochs."""
    clocks, cores = [], []
    for _ in range(repeats):
        clock, core = time.perf_counter(), time.process_time()
        count = sum(len(batch) for batch in epoch())
        clocks.append(count / (time.perf_counter() - clock))
        cores.append(count / (time.process_time() - core))
    return max(clocks), max(cores)


def main() -> None:
    """Prints images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with tempfile.TemporaryDirectory() as folder:
        files = write_photographs(Path(folder) / "photographs", options.images)
        root = Path(folder) / "cache"
        cache = ImageCache(root)
        cached = cache.complete(cache.look_up(files, [RESIZE]), no_progress, "decoding")
        generator = torch.Generator().manual_seed(0)
        cache = speed(lambda: from_cache(cached.images[RESIZE], generator), repeats=5)
        decoded = speed(lambda: from_files(files, generator), repeats=2)
    print(f"batches of {BATCH} crops of {CROP} px, normalised, on one core")
    for name, (clock, core) in zip(("decoded each time", "from the cache"), (decoded, cache), strict=True):
        print(f"{name:<18} {clock:7.0f} images/s by the clock, {core:7.0f} by the core's time")
    print(
        f"ratio              {cache[0] / decoded[0]:7.1f} by the clock, {cache[1] / decoded[1]:7.1f} by the core's time"
    )


if __name__ == "__main__":
    main()
