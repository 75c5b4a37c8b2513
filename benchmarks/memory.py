"""What a trial holds in memory of data sets of 500 and of 5,000 images.

    uv run python benchmarks/memory.py [--images 500 5000]

A process of its own opens each data set as a trial does and takes 300 batches of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import size_text
from elta_tune.data.prepare import prepare

RESIZE, CROP = 160, 128
TRIAL = f"""
import resource, sys, time
from pathlib import Path
import torch
from elta_tune.config import DataConfig
from elta_tune.data.batches import augment, epoch_order, normalize, prefetch
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import open_dataset

mean = std = torch.tensor([0.5, 0.5, 0.5])
root = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
dataset = open_dataset(DataConfig(root=root, resize={RESIZE}, crop={CROP}), ImageCache(root / "cache"))
opened = time.perf_counter() - started
images, generator = dataset.train.images[{RESIZE}], torch.Generator().manual_seed(0)
batches = 0
while batches < 300:
    order = epoch_order(len(images), 48, generator)[:300 - batches]
    for _, batch in prefetch(images, order, torch.device("cpu"), lambda batch: augment(batch, {CROP}, generator)):
        normalize(batch, mean, std)
    batches += len(order)
print(opened, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def write_dataset(root: Path, count: int) -> None:
    """Tiny pictures, all different, with five bins of votes."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    for split, rows in (("train", count), ("val", 50)):
        lines = ["image_id," + ",".join(f"count_{k}" for k in range(1, 6))]
        for number in range(rows):
            name = f"{split}_{number:06d}.png"
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(root / "images" / name)
            lines.append(f"{name}," + ",".join(map(str, random.integers(1, 30, 5))))
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Prints what each data set adds to a process that has imported everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5000])
    for count in parser.parse_args().images:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_dataset(root, count)
            prepare(DataConfig(root=root, resize=RESIZE, crop=CROP), ImageCache(root / "cache"))
            command = [sys.executable, "-c", TRIAL, folder]
            # Large blocks go back to the system at once: else glibc's peak is one of chance.
            environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "100000"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        opened, grown = map(float, done.stdout.split())
        memory = grown * (1 if sys.platform == "darwin" else 1024)
        pixels = size_text(count * RESIZE**2 * 3)
        print(f"{count:>7} images, {pixels} of pixels: opened in {opened:.2f} s, {size_text(memory)} more memory")


if __name__ == "__main__":
    main()
