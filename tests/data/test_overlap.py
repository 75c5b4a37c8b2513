"""An image in two splits is found by its id, bytes or pixels, without false alarms."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import DataConfig
from elta_tune.data import overlap
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import no_progress
from elta_tune.data.check import examine
from elta_tune.data.prepare import prepare
from elta_tune.errors import DataError


def write_splits(root: Path) -> Path:
    """Two noise images for each of four splits; those of the pool are JPEGs."""
    (root / "images").mkdir(parents=True)
    random = np.random.default_rng(5)
    for split in ("train", "val", "test", "pool"):
        for number in range(2):
            pixels = random.integers(0, 256, (20, 30, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{split}{number}.{'jpg' if split == 'pool' else 'png'}")
        write_list(root, split, [f"{split}0", f"{split}1"])
    return root


def write_list(root: Path, split: str, ids: list[str]) -> None:
    """A rating file of these ids."""
    rows = ["image_id", *ids] if split == "pool" else ["image_id,count_1,count_2", *(f"{name},1,2" for name in ids)]
    (root / f"{split}.csv").write_text("\n".join(rows) + "\n")


def config(root: Path) -> DataConfig:
    """A data section."""
    return DataConfig.model_validate({"root": root, "resize": 16, "crop": 16, "max_missing": 0.5})


def check(root: Path) -> tuple[str, ...]:
    """The warnings about duplicate images."""
    return tuple(line for line in prepare(config(root), ImageCache(root / "cache")).warnings if "is also" in line)


def copied(root: Path, image: str, name: str) -> None:
    """The same bytes under another name."""
    shutil.copy(root / "images" / image, root / "images" / name)


def resaved(root: Path, image: str, name: str) -> None:
    """The same pixels in another file."""
    Image.open(root / "images" / image).save(root / "images" / name, compress_level=1)


def test_splits_of_different_images_are_taken_as_they_are(tmp_path: Path) -> None:
    assert check(write_splits(tmp_path)) == ()


@pytest.mark.parametrize(("first", "second"), [("train", "val"), ("val", "test"), ("train", "test")])
def test_an_id_in_two_labelled_splits_is_refused(tmp_path: Path, first: str, second: str) -> None:
    root = write_splits(tmp_path)
    write_list(root, second, [f"{second}0", f"{first}1"])
    with pytest.raises(DataError) as error:
        check(root)
    for part in (f"{root / first}.csv", f"{root / second}.csv", f"'{first}1'", "the same id"):
        assert part in error.value.message


def test_file_in_two_labelled_splits_is_refused_however_spelled(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    write_list(root, "val", ["val0", "train1.png"])
    with pytest.raises(DataError, match=r"'train1' is also in .* as 'train1.png' \(the same file\)"):
        check(root)


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize(("save", "how"), [(copied, "bytes"), (resaved, "pixels")])
def test_held_out_image_in_the_pool_is_refused_under_any_name(
    tmp_path: Path, held_out: str, save: object, how: str
) -> None:
    root = write_splits(tmp_path)
    assert callable(save)
    save(root, "pool1.jpg", "other.png")
    write_list(root, held_out, [f"{held_out}0", "other"])
    with pytest.raises(DataError) as error:
        check(root)
    assert error.value.message == (
        f"{root / 'pool.csv'}: 'pool1' is also in {root / held_out}.csv as 'other' (the same {how})"
    )


def test_held_out_image_in_the_pool_is_refused_by_its_id(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    write_list(root, "val", ["val0", "pool0"])
    with pytest.raises(DataError, match=r"'pool0' is also in .* \(the same id\)"):
        check(root)


@pytest.mark.parametrize("save", [copied, resaved])
def test_same_pixels_in_two_labelled_splits_are_a_warning(tmp_path: Path, save: object) -> None:
    root = write_splits(tmp_path)
    assert callable(save)
    save(root, "train0.png", "twin.png")
    write_list(root, "test", ["test0", "twin"])
    (warning,) = check(root)
    assert "'train0' is also in" in warning
    assert "'twin'" in warning


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize("save", [copied, resaved])
def test_many_renamed_held_out_images_in_train_are_refused(tmp_path: Path, held_out: str, save: object) -> None:
    root = write_splits(tmp_path)
    assert callable(save)
    for number in range(2):
        save(root, f"{held_out}{number}.png", f"twin{number}.png")
    write_list(root, "train", ["train0", "train1", "twin0", "again"])
    copied(root, "twin0.png", "again.png")
    assert len(check(root)) == 1  # one of two images, the allowed half, though it is a duplicate
    write_list(root, "train", ["train0", "train1", "twin0", "twin1"])
    with pytest.raises(DataError, match=f"'twin0' is also in .*{held_out}.csv as '{held_out}0'"):
        check(root)


def test_a_picture_that_is_nearly_another_is_another(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    pixels = np.array(Image.open(root / "images" / "pool1.jpg"))
    pixels[3, 4] ^= 1
    Image.fromarray(pixels).save(root / "images" / "other.png")
    write_list(root, "val", ["val0", "other"])
    assert check(root) == ()


def test_a_copy_is_found_among_many_flat_pictures(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    for number in range(12):  # black, of different sizes: their thumbnails are all equal
        Image.new("RGB", (20 + number, 20)).save(root / "images" / f"black{number}.png")
    Image.new("RGB", (23, 20)).save(root / "images" / "again.bmp")
    write_list(root, "pool", ["pool0", *(f"black{number}" for number in range(12))])
    write_list(root, "test", ["test0", "again.bmp"])
    with pytest.raises(DataError, match=r"'black3' is also in .* as 'again.bmp' \(the same pixels\)"):
        check(root)


def test_two_unreadable_files_are_not_the_same_picture(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    for name in ("pool0.jpg", "val0.png"):
        (root / "images" / name).write_bytes(b"")
    assert check(root) == ()


def test_many_overlaps_are_counted(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    for number in range(5):
        Image.new("RGB", (20, 20), (number, 50, 99)).save(root / "images" / f"same{number}.png")
    both = [f"same{number}" for number in range(5)]
    write_list(root, "val", both)
    write_list(root, "pool", both)
    with pytest.raises(DataError, match="… and 2 more"):
        check(root)


@pytest.mark.parametrize("save", [copied, resaved])
def test_duplicate_image_within_a_split_is_only_reported(tmp_path: Path, save: object) -> None:
    root = write_splits(tmp_path)
    assert callable(save)
    save(root, "train1.png", "again.png")
    write_list(root, "train", ["train0", "train1", "again"])
    examined = examine(config(root), ImageCache(root / "cache"), no_progress)
    assert [str(item) for item in examined.shared] == [
        f"{root}/train.csv: 'again' is also there as 'train1' (the same {'bytes' if save is copied else 'pixels'})"
    ]
    assert not examined.refusals
    assert check(root) == ()


def test_file_named_twice_by_a_split_is_found(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    write_list(root, "pool", ["pool0", "pool0.jpg"])
    (shared,) = examine(config(root), ImageCache(root / "cache"), no_progress).shared
    assert (shared.ids, shared.how, shared.is_leak) == (("pool0.jpg", "pool0"), "file", False)


def test_a_large_jpeg_is_found_in_a_file_that_lost_nothing(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    random = np.random.default_rng(8)
    for number in range(3):  # of which the JPEGs are decoded at an eighth of their size
        large = Image.fromarray(random.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize((1207, 903))
        large.save(root / "images" / f"large{number}.jpg", quality=92)
    resaved(root, "large1.jpg", "again.png")
    write_list(root, "pool", [f"large{number}" for number in range(3)])
    write_list(root, "val", ["val0", "again"])
    with pytest.raises(DataError, match=r"'large1' is also in .* as 'again' \(the same pixels\)"):
        check(root)


def test_rotated_copy_of_an_image_is_found(tmp_path: Path) -> None:
    root = write_splits(tmp_path)
    with Image.open(root / "images" / "pool1.jpg") as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "turned.png", exif=exif)
    write_list(root, "test", ["test0", "turned"])
    with pytest.raises(DataError, match=r"'pool1' is also in .* as 'turned' \(the same pixels\)"):
        check(root)


def test_pictures_are_compared_once_for_the_same_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_splits(tmp_path)
    resaved(root, "train0.png", "twin.png")
    write_list(root, "test", ["test0", "twin"])
    first = check(root)

    def refuse(*arguments: object) -> None:
        raise AssertionError("it is known")

    with monkeypatch.context() as patch:
        patch.setattr(overlap, "same_pictures", refuse)
        (root / "images" / "test0.png").rename(root / "images" / "renamed.png")
        write_list(root, "test", ["twin", "renamed"])
        assert check(root) == first
    resaved(root, "val0.png", "other.png")
    write_list(root, "test", ["renamed", "other"])
    (warning,) = check(root)
    assert "'val0' is also in" in warning
