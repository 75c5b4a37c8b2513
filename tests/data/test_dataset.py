"""A data set is its splits' labels and cached images; what is missing is left out, counted, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig, TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.dataset import Dataset, Split
from elta_tune.data.prepare import open_dataset, prepare
from elta_tune.errors import DataError


def write_rated(root: Path, split: str, ids: list[str], *, bins: int = 3) -> None:
    """A rating file whose image i has i + 1 votes for rating 1 and one for each other."""
    header = ",".join(["image_id", *(f"count_{k}" for k in range(1, bins + 1))])
    rows = [f"{name},{number + 1}" + ",1" * (bins - 1) for number, name in enumerate(ids)]
    (root / f"{split}.csv").write_text("\n".join([header, *rows]) + "\n")


def write_root(root: Path, counts: dict[str, int]) -> dict[str, list[str]]:
    """A data set of plain images, each of another grey."""
    (root / "images").mkdir(parents=True)
    ids = {split: [f"{split}{number}.png" for number in range(count)] for split, count in counts.items()}
    greys = iter(range(256))
    for split, names in ids.items():
        for name in names:
            Image.new("RGB", (20, 20), (next(greys),) * 3).save(root / "images" / name)
        write_rated(root, split, names)
    return ids


def config(root: Path, **fields: object) -> DataConfig:
    """A small data section."""
    return DataConfig.model_validate({"root": root, "resize": 16, "crop": 12, **fields})


def test_prepare_and_open_give_the_same_splits(recipe: TrialConfig, cache: Path) -> None:
    prepared = prepare(recipe.data, ImageCache(cache))
    opened = open_dataset(recipe.data, ImageCache(cache), splits=("train", "val", "test", "pool"))
    assert opened.scale == prepared.scale == (1.0, 5.0)
    assert opened.threshold == 3.0
    assert opened.tail_cuts == prepared.tail_cuts
    for name, count in {"train": 32, "val": 16, "test": 16, "pool": 16}.items():
        one, other = getattr(prepared, name), getattr(opened, name)
        assert len(one.ids) == len(one.images[32]) == count
        assert one.ids.tolist() == other.ids.tolist()
        assert one.fingerprint == other.fingerprint
        assert sorted(one.images) == ([32] if name in ("val", "test") else [32, 36])
    assert prepared.pool is not None
    assert not isinstance(prepared.pool, Split)


def test_trial_opens_no_test_split_by_default(recipe: TrialConfig, cache: Path) -> None:
    assert open_dataset(recipe.data, ImageCache(cache)).test is None


def test_labels_and_images_belong_together(tmp_path: Path) -> None:
    ids = write_root(tmp_path, {"train": 5, "val": 4})
    (tmp_path / "images" / ids["train"][2]).unlink()
    (tmp_path / "images" / ids["train"][3]).write_bytes(b"broken")
    dataset = prepare(config(tmp_path, max_missing=0.4), ImageCache(tmp_path / "cache"))
    train = dataset.train
    assert train.ids.tolist() == ["train0.png", "train1.png", "train4.png"]
    # Image i has i + 1 votes for 1 and one each for 2 and 3.
    np.testing.assert_allclose(train.scores, [(i + 1 + 2 + 3) / (i + 3) for i in (0, 1, 4)])
    assert train.distributions is not None
    np.testing.assert_allclose(train.distributions[2], [5 / 7, 1 / 7, 1 / 7], rtol=1e-6)
    assert train.images[16].gather(np.array([0, 1, 2]))[:, 0, 0, 0].tolist() == [0, 1, 4]
    (missing, missing_why), (broken, broken_why) = train.left_out
    assert (missing, broken) == ("train2.png", "train3.png")
    assert missing_why == "there is no such file"
    assert broken_why == "it is not an image"


@pytest.mark.parametrize("damage", ["missing", "unreadable"])
@pytest.mark.parametrize("split", ["train", "val", "test", "pool"])
def test_too_many_missing_images_are_refused_first(tmp_path: Path, split: str, damage: str) -> None:
    ids = write_root(tmp_path, {"train": 4, "val": 4, "test": 4, "pool": 4})
    for name in ids[split][:2]:
        file = tmp_path / "images" / name
        file.unlink() if damage == "missing" else file.write_text("no image")
    assert isinstance(prepare(config(tmp_path, max_missing=0.5), ImageCache(tmp_path / "cache")), Dataset)
    with pytest.raises(DataError) as error:
        prepare(config(tmp_path, max_missing=0.49), ImageCache(tmp_path / "cache"))
    message = error.value.message
    assert message.startswith(f"{tmp_path / split}.csv: 2 of 4 images are missing or unreadable")
    assert "data.max_missing" in message
    assert ids[split][0] in message
    assert ids[split][1] in message


def test_split_without_images_is_refused_at_any_limit(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": 2, "val": 2})
    write_rated(tmp_path, "val", ["nowhere"])
    with pytest.raises(DataError, match="1 of 1 image is missing"):
        prepare(config(tmp_path, max_missing=0.99), ImageCache(tmp_path / "cache"))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG", ".PNG"])
def test_ids_are_text_and_looked_for_as_given_then_with_a_suffix(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "images").mkdir()
    for name, grey in {"00001": 10, "1": 20, "2.5": 30}.items():
        Image.new("RGB", (20, 20), (grey,) * 3).save(tmp_path / "images" / f"{name}{suffix}")
    Image.new("RGB", (20, 20), (40,) * 3).save(tmp_path / "images" / "full.png")
    write_rated(tmp_path, "train", ["00001", "1", "2.5"])
    write_rated(tmp_path, "val", ["full.png"])
    dataset = prepare(config(tmp_path), ImageCache(tmp_path / "cache"))
    assert dataset.train.ids.tolist() == ["00001", "1", "2.5"]
    greys = dataset.train.images[16].gather(np.arange(3))[:, 0, 0, 0]
    np.testing.assert_allclose(greys, [10, 20, 30], atol=2)  # JPEG


def test_an_exact_name_comes_before_one_with_a_suffix(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": 2, "val": 2})
    Image.new("RGB", (20, 20), (200,) * 3).save(tmp_path / "images" / "train0.png.png")
    dataset = prepare(config(tmp_path), ImageCache(tmp_path / "cache"))
    assert dataset.train.images[16].gather(np.arange(2))[:, 0, 0, 0].tolist() == [0, 1]


def test_splits_of_other_bins_or_another_scale_are_refused(tmp_path: Path) -> None:
    ids = write_root(tmp_path, {"train": 2, "val": 2})
    write_rated(tmp_path, "val", ids["val"], bins=5)
    with pytest.raises(DataError, match=r"val\.csv: its scale is 1…5, but that of .*train\.csv is 1…3"):
        prepare(config(tmp_path), ImageCache(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"val\.csv: has 5 bins of ratings, 1…5, but .*train\.csv has 3 bins"):
        prepare(config(tmp_path, scale=[1, 5]), ImageCache(tmp_path / "cache"))


def test_a_model_of_distributions_may_be_judged_by_scores(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": 2, "val": 2})
    (tmp_path / "val.csv").write_text("image_id,MOS\nval0.png,1.25\nval1.png,2\n")
    dataset = prepare(config(tmp_path, scale=[1, 3]), ImageCache(tmp_path / "cache"))
    assert dataset.train.distributions is not None
    assert dataset.val.distributions is None
    assert dataset.val.scores.tolist() == [1.25, 2]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda root: (root / "train.csv").unlink(), "train.csv: no such file"),
        (lambda root: (root / "val.csv").unlink(), "val.csv: no such file"),
        (lambda root: shutil.rmtree(root / "images"), "data.images: "),
    ],
)
def test_missing_files_are_named(tmp_path: Path, spoil: object, named: str) -> None:
    write_root(tmp_path, {"train": 2, "val": 2})
    assert callable(spoil)
    spoil(tmp_path)
    with pytest.raises(DataError, match=named) as error:
        prepare(config(tmp_path), ImageCache(tmp_path / "cache"))
    assert error.value.hint or "\n  " in error.value.message


def test_without_any_data_the_setting_is_named() -> None:
    with pytest.raises(DataError, match=r"data\.train") as error:
        open_dataset(DataConfig(), ImageCache(Path("cache")))
    assert "`data.root=FOLDER`" in str(error.value.hint)


def test_a_pool_may_be_a_folder_with_folders(tmp_path: Path) -> None:
    write_root(tmp_path, {"train": 2, "val": 2})
    (tmp_path / "more" / "deep").mkdir(parents=True)
    for grey, name in enumerate(["b.png", "deep/a.jpeg", "notes.txt"]):
        if name.endswith("txt"):
            (tmp_path / "more" / name).write_text("no image, and none is expected")
        else:
            Image.new("RGB", (20, 20), (100 + 50 * grey,) * 3).save(tmp_path / "more" / name)
    dataset = prepare(config(tmp_path, pool="more"), ImageCache(tmp_path / "cache"))
    assert dataset.pool is not None
    assert dataset.pool.ids.tolist() == ["b.png", "deep/a.jpeg"]
    greys = dataset.pool.images[12].gather(np.arange(2))[:, 0, 0, 0]
    np.testing.assert_allclose(greys, [100, 150], atol=2)


def test_the_fingerprint_is_of_ids_and_labels(tmp_path: Path) -> None:
    ids = write_root(tmp_path, {"train": 3, "val": 3})
    first = prepare(config(tmp_path), ImageCache(tmp_path / "cache"))
    assert first.train.fingerprint != first.val.fingerprint
    (tmp_path / "train.csv").rename(tmp_path / "renamed.csv")
    renamed = prepare(config(tmp_path, train="renamed.csv"), ImageCache(tmp_path / "cache"))
    assert renamed.train.fingerprint == first.train.fingerprint
    header, *rows = (tmp_path / "renamed.csv").read_text().splitlines()
    (tmp_path / "renamed.csv").write_text("\n".join([header, *rows[::-1]]) + "\n")
    turned = prepare(config(tmp_path, train="renamed.csv"), ImageCache(tmp_path / "cache"))
    assert turned.train.ids.tolist() == ids["train"][::-1]
    assert turned.train.fingerprint == first.train.fingerprint
    write_rated(tmp_path, "train", ids["train"][::-1])
    assert prepare(config(tmp_path), ImageCache(tmp_path / "cache")).train.fingerprint != first.train.fingerprint


def test_the_demo_is_drawn_once_and_then_read_like_any_data(tmp_path: Path) -> None:
    demo = {"train": 6, "val": 4, "test": 3, "pool": 2, "size": 20}
    settings = DataConfig.model_validate({"demo": demo, "resize": 20, "crop": 16})
    reported: list[str] = []
    dataset = prepare(settings, ImageCache(tmp_path), lambda done, total, what: reported.append(what))
    assert [len(dataset.train.ids), len(dataset.val.ids)] == [6, 4]
    assert dataset.test is not None
    assert dataset.pool is not None
    assert [len(dataset.test.ids), len(dataset.pool.ids)] == [3, 2]
    assert dataset.scale == (1.0, 10.0)
    assert dataset.threshold == 5.0
    assert any("demo" in what for what in reported)
    reported.clear()
    again = prepare(settings, ImageCache(tmp_path), lambda done, total, what: reported.append(what))
    assert not reported
    assert again.train.fingerprint == dataset.train.fingerprint
