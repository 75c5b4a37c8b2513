"""How fast the cache is built from 12-megapixel JPEGs, against a plain Pillow loop with a process per core.

    uv run python benchmarks/cache.py [--images 200] [--sizes 300] [--quality 93]

The images are the demo's photographs, enlarged, with the grain of a camera; both make the same squares of them.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from elta_tune.data.cache.builder import available_cores
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.demo import Grades, photograph

WIDTH, HEIGHT = 4032, 3024


def write_photograph(number: int, folder: Path, quality: int) -> None:
    """Draws one, with more or less light, sharpness and grain."""
    random = np.random.default_rng(number)
    picture = photograph(Grades(*random.normal(0.5, 0.5, 5)), 504, random)
    image = Image.fromarray(picture).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((WIDTH // 2, HEIGHT // 2), random.uniform(2, 6)).resize((WIDTH, HEIGHT)).convert("RGB")
    ImageChops.add(image, grain, offset=-128).save(folder / f"{number:04d}.jpg", quality=quality)


def plain(file: str, sizes: list[int]) -> list[np.ndarray]:
    """The loop that everyone writes."""
    image = Image.open(file).convert("RGB")
    return [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for size in sizes]


def plain_loop(files: list[str], sizes: list[int], out: Path) -> None:
    """The squares of all files in one array per size, by a process per core."""
    arrays = [np.lib.format.open_memmap(out / f"{s}.npy", "w+", np.uint8, (len(files), s, s, 3)) for s in sizes]
    with ProcessPoolExecutor(available_cores()) as pool:
        for index, squares in enumerate(pool.map(partial(plain, sizes=sizes), files)):
            for array, square in zip(arrays, squares, strict=True):
                array[index] = square


def decode_all(files: list[str], sizes: list[int], out: Path) -> None:
    """The same by elta-tune."""
    cache = ImageCache(out)
    cache.complete(cache.look_up(files, sizes), no_progress, "decoding")


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the clock, and of all cores."""
    before, started = _cpu(), time.perf_counter()
    work()
    return time.perf_counter() - started, _cpu() - before


def _cpu() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def differences(files: list[str], sizes: list[int], out: Path) -> np.ndarray:
    """Mean difference of each image and size from the plain loop's, in grey levels."""
    cached = ImageCache(out).look_up(files, sizes)
    found = []
    for size in sizes:
        theirs = np.load(out / f"{size}.npy", mmap_mode="r")
        for index in range(len(files)):
            ours = cached.images[size].gather(np.array([index]))[0]
            found.append(np.abs(ours.astype(int) - theirs[index]).mean())
    return np.array(found)


def main() -> None:
    """Prints images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[300])
    parser.add_argument("--quality", type=int, default=93)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out, photographs = Path(folder), Path(folder) / "photographs"
        photographs.mkdir()
        with ProcessPoolExecutor(available_cores()) as pool:
            write = partial(write_photograph, folder=photographs, quality=options.quality)
            list(pool.map(write, range(options.images)))
        files = sorted(map(str, photographs.iterdir()))
        megabytes = sum(os.path.getsize(file) for file in files) / len(files) / 1e6
        print(f"{len(files)} JPEGs of {WIDTH}×{HEIGHT}, {megabytes:.1f} MB each, to {options.sizes} px")
        times = [measured(partial(work, files, options.sizes, out)) for work in (plain_loop, decode_all)]
        for name, (clock, cpu) in zip(("plain Pillow loop", "cache"), times, strict=True):
            print(f"{name:<18} {len(files) / clock:6.1f} images/s, {1000 * cpu / len(files):6.1f} ms of a core each")
        by_clock, by_cpu = (one / other for one, other in zip(*times, strict=True))
        print(f"ratio              {by_clock:.2f} by the clock, {by_cpu:.2f} by the time of {available_cores()} cores")
        off = differences(files, options.sizes, out)
        print(f"grey levels from a full decode: mean {off.mean():.2f}, worst image {off.max():.2f}")
        again, _ = measured(partial(decode_all, files, options.sizes, out))
        print(f"opened again       in {again:.3f} s")


if __name__ == "__main__":
    main()
