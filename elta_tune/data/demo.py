"""The built-in data set: photographs that are drawn by a procedure, and votes on how good they are.

Each is a landscape with a subject (sun, tree or house), taken by a photographer who gets five things more or less
right. How right is a *grade*, standard normal; each point of it halves a fault that one can see:

    composition   the horizon tilts, and the subject stands away from the thirds
    exposure      too dark or too bright, in stops
    sharpness     defocus blur
    cleanness     sensor noise
    colour        a cast over the whole picture, in any hue

The true MOS is a weighted sum of the grades, with tails a little longer than the normal's, as AVA's are (mean 5.4,
standard deviation .73). One to three hundred votes are drawn around it. The faults come in pairs of opposites (dark and
bright, red and cyan) and the scenes in many colours, so colours explain less than half; a network has to look.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy  # its parts load when first used: a folder of one's own draws nothing
from numpy.typing import NDArray
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import Progress
from elta_tune.data.splits import SPLITS
from elta_tune.errors import DataError
from elta_tune.files import make_once

VERSION = 1
"""A new number makes the images again: raise it when the drawing changes."""
Picture = NDArray[np.float64]
RATINGS = np.arange(1, 11)
VOTE_COLUMNS = [f"score{rating + 1}" for rating in RATINGS]  # AVA's files call the count of rating 1 score2


class Grades(NamedTuple):
    """How right a photographer gets it: standard normal each, higher is better."""

    composition: float
    exposure: float
    sharpness: float
    cleanness: float
    colour: float


WEIGHTS = Grades(composition=0.45, exposure=0.25, sharpness=0.65, cleanness=0.5, colour=0.25)
"""Squares sum to about 1: so the weighted sum is standard normal, too."""

FAULTS = Grades(composition=8.0, exposure=0.5, sharpness=1.0, cleanness=0.08, colour=0.15)
"""At grade 0: degrees of tilt, stops, blur and noise in 1/64 of the edge and of full white, strength of the cast."""

WORST = -2.5
"""Grade below which a fault grows no more: there would be no picture left."""


def with_demo(config: DataConfig, cache: ImageCache, progress: Progress) -> DataConfig:
    """A data section that names the demo's folder: its files are written once, and are then like everyone's.

    Raises:
        DataError: they can't be written.
    """
    if config.demo is None:
        return config
    facts = config.demo.model_dump()
    key = hashlib.blake2b(f"{VERSION} {facts}".encode(), digest_size=6).hexdigest()
    folder = cache.root / f"demo-{key}"
    if not folder.exists():
        total = sum(facts[name] for name in SPLITS)
        progress(0, total, "drawing the demo's photographs")
        try:
            make_once(folder, lambda aside: write_demo(aside, **facts))
        except OSError as error:
            raise DataError(f"{folder}: the demo can't be written: {error.strerror or error}") from error
        progress(total, total, "drawing the demo's photographs")
    return config.model_copy(update={"demo": None, "root": folder})


def write_demo(
    folder: Path,
    *,
    train: int,
    val: int,
    test: int,
    pool: int,
    size: int,
    seed: int,
) -> None:
    """Writes train.csv, val.csv, test.csv, pool.csv and images/ of `size` × `size` pixels.

    An image depends on the seed, its split and its number there, not on how many there are.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, (name, count) in enumerate({"train": train, "val": val, "test": test, "pool": pool}.items()):
        rows = []
        for number in range(count):
            random = np.random.default_rng([seed, split, number])
            grades = Grades(*random.standard_normal(len(Grades._fields)))
            image_id = f"{name}_{number:05d}.png"
            Image.fromarray(photograph(grades, size, random)).save(folder / "images" / image_id)
            rows.append([image_id, *draw_votes(true_mos(grades), random)] if name != "pool" else [image_id])
        header = ["image_id", *VOTE_COLUMNS] if name != "pool" else ["image_id"]
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def true_mos(grades: Grades) -> float:
    """The MOS on 1…10 of a picture with these grades."""
    quality = float(np.dot(WEIGHTS, grades))
    return min(max(5.4 + 0.7 * quality + 0.01 * quality**3, 1.0), 10.0)  # the cube gives AVA's excess kurtosis, .3


def draw_votes(mos: float, random: np.random.Generator) -> list[int]:
    """Counts of the ratings 1…10: (10,); opinions differ by about 1.4, as on AVA."""
    spread = random.normal(1.4, 0.2)
    edges = scipy.special.ndtr((np.arange(1.5, 10.0) - mos) / max(spread, 0.8))
    votes = random.multinomial(random.integers(100, 300), np.diff(edges, prepend=0.0, append=1.0))
    return [int(count) for count in votes]


def photograph(grades: Grades, size: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (size, size, 3) of a random scene; the same generator takes the same scene with other grades."""
    faults = Grades(*(fault * 0.5 ** max(grade, WORST) for fault, grade in zip(FAULTS, grades, strict=True)))
    picture = draw_scene(faults.composition, size, random)
    blur = faults.sharpness * size / 64
    picture = scipy.ndimage.gaussian_filter(picture, (blur, blur, 0))
    picture = picture * 2.0 ** (faults.exposure * random.choice([-1, 1]))
    picture = picture * (1 + faults.colour * hue(random.uniform()))
    picture = picture.clip(0, 1) * (1 + faults.cleanness * random.standard_normal((size, size, 1)))
    return np.asarray((picture.clip(0, 1) * 255).round(), np.uint8)


def draw_scene(tilt: float, size: int, random: np.random.Generator) -> Picture:
    """Sky, hills, textured ground and a subject: (size, size, 3) in 0…1."""
    down, right = (np.mgrid[:size, :size] + 0.5) / size
    horizon = random.choice([0.38, 0.62])
    slope = np.tan(np.radians(tilt * random.choice([-1, 1])))
    depth = down - horizon - slope * (right - 0.5)  # below the horizon where positive
    hills = random.uniform(0.02, 0.1) * (1 + np.sin(random.uniform(4, 12) * right + random.uniform(0, 6)))
    sky = random_colour(0.65, random) + 0.25 * depth[..., None]
    ground = random_colour(0.4, random) * (1 + random.uniform(0.1, 0.6) * texture(size, random))
    picture = np.where((depth > -hills)[..., None], random_colour(0.4, random), sky)
    picture = np.where((depth > 0)[..., None], ground, picture)
    left = 1 / 3 + tilt / 90 * random.choice([-1, 1])
    subject = subject_mask(depth, right - (left if random.random() < 0.5 else 1 - left), random)
    return np.where(subject[..., None], random_colour(random.choice([0.2, 0.75]), random), picture)


def subject_mask(depth: Picture, right: Picture, random: np.random.Generator) -> NDArray[np.bool_]:
    """Where the sun, tree or house is, given the place relative to its foot on the horizon."""
    height = random.uniform(0.16, 0.28)
    up = -depth / height
    across = np.abs(right) / height
    sun = (up - 0.8) ** 2 + across**2 < 0.3
    tree = (np.abs(up) < 0.6) & (across < 0.1) | ((up - 0.8) ** 2 + across**2 < 0.2)
    house = (up > -0.3) & (up < 0.5) & (across < 0.5) | (up >= 0.5) & (across < 1.1 - up)
    return (sun, tree, house)[random.integers(3)]


def texture(size: int, random: np.random.Generator) -> Picture:
    """Grass or gravel: (size, size, 1), of standard deviation 1, as fine at any size."""
    grain = scipy.ndimage.gaussian_filter(random.standard_normal((size, size)), random.uniform(0.8, 1.6) * size / 64)
    return np.asarray(grain / grain.std())[..., None]


def random_colour(lightness: float, random: np.random.Generator) -> Picture:
    """Any hue around a lightness: (3,)."""
    return lightness * random.uniform(0.9, 1.1) * (1 + random.uniform(0, 0.25) * hue(random.uniform()))


def hue(angle: float) -> Picture:
    """The direction (3,) from grey to a hue; `angle` in turns."""
    return np.cos(2 * np.pi * (angle - np.arange(3) / 3))
