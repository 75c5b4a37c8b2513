"""The recipe of each data set finds the files as published, and trains on them as the released code does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openpyxl
import pytest
import yaml
from PIL import Image

from elta_tune.config import load_recipe
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.prepare import prepare
from elta_tune.training.self_training import check_fits

TRIALS = Path(__file__).parents[2] / "trials"
COUNT = 40


def scores(high: float) -> list[float]:
    """Scores from 0 to `high`."""
    return [round(high * number / (COUNT - 1), 4) for number in range(COUNT)]


def text(root: Path, file: str, *rows: str) -> None:
    """A text file, with its folder."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text("".join(f"{row}\n" for row in rows))


def ava(root: Path) -> list[str]:
    """Three files of votes."""
    header = "image_id," + ",".join(f"score{number}" for number in range(2, 12))
    for place, split in enumerate(("train", "val", "test")):
        rows = [
            f"{place}{number:02d}" + ",0" * (number % 10) + ",9" + ",0" * (9 - number % 10) for number in range(COUNT)
        ]
        text(root, f"{split}.csv", header, *rows)
    return [f"images/{place}{number:02d}.jpg" for place in range(3) for number in range(COUNT)]


def aadb(root: Path) -> list[str]:
    """Three lists without a header."""
    for split in ("Train", "Validation", "TestNew"):
        rows = [f"{split}_{number}.jpg {score}" for number, score in enumerate(scores(1))]
        text(root, f"imgList{split}Regression_score.txt", *rows)
    return [f"images/{split}_{number}.jpg" for split in ("Train", "Validation", "TestNew") for number in range(COUNT)]


def tad66k(root: Path) -> list[str]:
    """Two files of scores."""
    for split in ("train", "test"):
        rows = [f"{split}{number}.jpg,{score}" for number, score in enumerate(scores(10))]
        text(root, f"{split}.csv", "image,score", *rows)
    return [f"images/{split}{number}.jpg" for split in ("train", "test") for number in range(COUNT)]


def para(root: Path) -> list[str]:
    """Two files of votes in half points; names repeat in each session."""
    header = "imageName,sessionId," + ",".join(f"aestheticScore_{k / 2}" for k in range(2, 11))
    for session, split in enumerate(("Train", "Test")):
        rows = [f"iaa{n}.jpg,session{session}" + ",1" * (n % 9) + ",5" + ",1" * (8 - n % 9) for n in range(COUNT)]
        text(root, f"annotation/PARA-Giaa{split}.csv", header, *rows)
    return [f"imgs/session{session}/iaa{number}.jpg" for session in range(2) for number in range(COUNT)]


def koniq10k(root: Path) -> list[str]:
    """One file of shares of votes, MOS on another scale than theirs, and the official split."""
    sets = ["training"] * 28 + ["validation"] * 4 + ["test"] * 8
    rows = [f"{n}.jpg" + ",.05" * (n % 5) + ",.8" + ",.05" * (4 - n % 5) + f",60,.5,{sets[n]}" for n in range(COUNT)]
    text(root, "koniq10k_distributions_sets.csv", "image_name,c1,c2,c3,c4,c5,MOS,SD,set", *rows)
    return [f"1024x768/{number}.jpg" for number in range(COUNT)]


def spaq(root: Path) -> list[str]:
    """One Excel sheet."""
    book = openpyxl.Workbook()
    assert book.active is not None
    book.active.append(["Image name", "MOS", "Brightness", "Colorfulness"])
    for number, score in enumerate(scores(100)):
        book.active.append([f"{number:05d}.jpg", score, 50, 50])
    (root / "Annotations").mkdir()
    book.save(root / "Annotations" / "MOS and Image attribute scores.xlsx")
    return [f"TestImage/{number:05d}.jpg" for number in range(COUNT)]


def eva(root: Path) -> list[str]:
    """One file of single votes."""
    rows = [f"{n}={user}={(n + user) % 11}=1=2=3=4=1" for user in range(3) for n in range(COUNT)]
    names = ["image_id", "user_id", "score", "difficulty", "visual", "composition", "quality", "semantic"]
    text(root, "data/votes_filtered.csv", "=".join(f'"{name}"' for name in names), *rows)
    return [f"images/{number}.jpg" for number in range(COUNT)]


class Expected(NamedTuple):
    """What a recipe makes of its files."""

    write: Callable[[Path], list[str]]
    counts: tuple[int, int, int]
    scale: tuple[float, float]
    threshold: float
    bins: int
    is_spread: bool


EXPECTED = {
    "ava": Expected(ava, (40, 40, 40), (1, 10), 5, 10, False),
    "aadb": Expected(aadb, (40, 40, 40), (0, 1), 0.5, 10, True),
    "tad66k": Expected(tad66k, (36, 4, 40), (0, 10), 5, 11, True),
    "para": Expected(para, (36, 4, 40), (1, 5), 3, 9, False),
    "koniq10k": Expected(koniq10k, (28, 4, 8), (1, 5), 3, 5, False),
    "spaq": Expected(spaq, (28, 4, 8), (0, 100), 50, 11, True),
    "eva": Expected(eva, (32, 4, 4), (0, 10), 5, 11, False),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_takes_the_files_as_they_are_given_out(tmp_path: Path, name: str) -> None:
    expected = EXPECTED[name]
    root = tmp_path / "root"
    root.mkdir()
    random = np.random.default_rng(0)
    for image in expected.write(root):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 20, 3)).astype(np.uint8)).save(root / image)
    small = ["data.resize=20", "data.crop=16", "model.backbone=test_efficientnet", "model.pretrained=false"]
    config = load_recipe(TRIALS / f"{name}.yaml", [f"data.root={root}", "training.batch_size=8", *small])
    dataset = prepare(config.data, ImageCache(tmp_path / "cache"))
    assert dataset.test is not None
    splits = (dataset.train, dataset.val, dataset.test)
    assert tuple(len(split.ids) for split in splits) == expected.counts
    assert all(split.left_out == () for split in splits)
    assert dataset.scale == expected.scale
    assert dataset.threshold == expected.threshold
    assert dataset.bins is not None
    assert len(dataset.bins) == expected.bins
    assert dataset.is_spread == expected.is_spread
    check_fits(config, dataset)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_recipe_is_the_released_training_on_other_data(name: str) -> None:
    own = load_recipe(TRIALS / f"{name}.yaml")
    released = load_recipe(TRIALS / "ava.yaml")
    assert own.model_copy(update={"data": released.data}) == released
    assert (own.data.resize, own.data.crop) == (300, 256)
    complete = yaml.safe_load((TRIALS / "ava.yaml").read_text())
    content = yaml.safe_load((TRIALS / f"{name}.yaml").read_text())
    for section, fields in complete.items():
        assert section in content
        assert not isinstance(fields, dict) or fields.keys() <= content[section].keys()
