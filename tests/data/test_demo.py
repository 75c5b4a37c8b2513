"""The demo's photographs are the same everywhere, rated like AVA's, and not judged by their colours alone."""

from __future__ import annotations

import csv
import filecmp
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kurtosis, spearmanr

from elta_tune.config import DataConfig, DemoConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.demo import Grades, photograph, true_mos, with_demo, write_demo
from elta_tune.errors import DataError

COUNTS = {"train": 1000, "val": 300, "test": 2, "pool": 3}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo large enough for statistics."""
    folder = tmp_path_factory.mktemp("demo") / "root"
    write_demo(folder, **COUNTS, size=56, seed=0)
    return folder


def read(folder: Path, split: str) -> tuple[list[str], NDArray[np.float64]]:
    """Ids and MOS, counted by hand: the k-th column after the id is the count of rating k."""
    with (folder / f"{split}.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_id", *(f"score{rating + 1}" for rating in range(1, 11))]
    votes = [[int(cell) for cell in row[1:]] for row in rows]
    assert all(100 <= sum(row) < 300 for row in votes)
    mos = [sum(rating * count for rating, count in enumerate(row, start=1)) / sum(row) for row in votes]
    return [row[0] for row in rows], np.array(mos)


def test_demo_is_repeatable_and_images_do_not_depend_on_count(tmp_path: Path) -> None:
    write_demo(tmp_path / "one", train=4, val=2, test=1, pool=1, size=24, seed=7)
    write_demo(tmp_path / "again", train=4, val=2, test=1, pool=1, size=24, seed=7)
    write_demo(tmp_path / "more", train=6, val=3, test=0, pool=2, size=24, seed=7)
    write_demo(tmp_path / "other", train=4, val=2, test=1, pool=1, size=24, seed=8)
    names = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 12
    assert filecmp.cmpfiles(tmp_path / "one", tmp_path / "again", map(str, names), shallow=False) == (
        list(map(str, names)),
        [],
        [],
    )
    images = [name for name in names if name.suffix == ".png"]
    for name in images:
        picture = (tmp_path / "one" / name).read_bytes()
        if not name.name.startswith("test"):
            assert (tmp_path / "more" / name).read_bytes() == picture
        assert (tmp_path / "other" / name).read_bytes() != picture
    assert len({(tmp_path / "one" / name).read_bytes() for name in images}) == len(images)  # no two are the same
    lines = (tmp_path / "one" / "train.csv").read_text().splitlines()
    assert (tmp_path / "more" / "train.csv").read_text().splitlines()[:5] == lines
    assert (tmp_path / "one" / "pool.csv").read_text() == "image_id\npool_00000.png\n"


def test_its_ratings_are_spread_like_avas(demo: Path) -> None:
    for split in ("train", "val"):
        ids, mos = read(demo, split)
        assert len(set(ids)) == COUNTS[split]
        assert all((demo / "images" / name).is_file() for name in ids)
        assert abs(mos.mean() - 5.4) < 0.1
        assert abs(mos.std() - 0.73) < 0.08
        with Image.open(demo / "images" / ids[0]) as image:
            assert image.size == (56, 56)


def test_its_tails_are_longer_than_the_normals_on_both_sides() -> None:
    grades = np.random.default_rng(0).standard_normal((100_000, len(Grades._fields)))
    mos = np.array([true_mos(Grades(*row)) for row in grades])
    assert 0.15 < kurtosis(mos) < 0.6  # AVA: .3; the normal: 0 ± .03
    far = 3.5 * mos.std()
    normal = 100_000 * 0.000233  # on either side
    assert (mos < mos.mean() - far).sum() > 1.4 * normal
    assert (mos > mos.mean() + far).sum() > 1.4 * normal
    assert 1 <= mos.min() < 2.7
    assert 8.1 < mos.max() <= 10


@pytest.mark.parametrize("grade", Grades._fields)
def test_better_grade_has_a_higher_rating_and_other_pixels(grade: str) -> None:
    middle = Grades(0, 0, 0, 0, 0)
    better, worse = middle._replace(**{grade: 1.5}), middle._replace(**{grade: -1.5})
    assert true_mos(worse) < true_mos(middle) < true_mos(better)
    flawless = Grades(9, 9, 9, 9, 9)
    faults = []
    for flawed in (flawless._replace(**{grade: 1.5}), flawless._replace(**{grade: -1.5})):
        pair = [photograph(grades, 48, np.random.default_rng(3)).astype(float) for grades in (flawless, flawed)]
        faults.append(np.abs(pair[0] - pair[1]).mean())
    assert faults[1] > 2 * faults[0]  # the worse grade shows more


def colour_statistics(file: Path) -> NDArray[np.float64]:
    """Mean, standard deviation and percentiles of red, green, blue, hue, saturation and value."""
    image = Image.open(file)
    pixels = np.concatenate([np.asarray(image), np.asarray(image.convert("HSV"))], axis=2).reshape(-1, 6) / 255
    return np.concatenate([pixels.mean(0), pixels.std(0), *np.percentile(pixels, [1, 10, 25, 50, 75, 90, 99], axis=0)])


def test_colour_statistics_explain_less_than_half(demo: Path) -> None:
    features, ratings = {}, {}
    for split in ("train", "val"):
        ids, ratings[split] = read(demo, split)
        features[split] = np.stack([colour_statistics(demo / "images" / name) for name in ids])
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-9
    x, x_val = ((features[split] - mean) / std for split in ("train", "val"))
    y = ratings["train"] - ratings["train"].mean()
    for penalty in (1, 10, 100, 1000):
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
        assert spearmanr(x_val @ weights, ratings["val"]).statistic < 0.5


def test_cache_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    config = DataConfig(demo=DemoConfig(train=1, val=1, test=1, pool=0))
    with pytest.raises(DataError, match=r"cache/demo-\w+: the demo can't be written: "):
        with_demo(config, ImageCache(tmp_path / "cache"), no_progress)
