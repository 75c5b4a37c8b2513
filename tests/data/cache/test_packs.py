"""Keys are found where they stand last, images by their pack and row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elta_tune.data.cache.decoding import Shrunk
from elta_tune.data.cache.packs import Images, Pack, PackWriter, find_images, positions


def keys(numbers: list[int]) -> np.ndarray:
    """(N, 16), many with zeros at both ends."""
    return np.array([[0, number // 3, number % 3, *[0] * 13] for number in numbers], np.uint8).reshape(-1, 16)


def write_pack(path: Path, numbers: list[int], edge: int = 3) -> dict[int, np.ndarray]:
    """A pack with an image for each number."""
    writer = PackWriter(path, edge, "folder")
    written = {}
    for number in numbers:
        written[number] = np.random.default_rng(number).integers(0, 256, (edge, edge, 3), np.uint8)
        thumbnail = np.full((8, 8, 3), number, np.uint8)
        writer.append(keys([number]).tobytes(), Shrunk({edge: written[number]}, thumbnail, (number, 1)), edge)
    writer.commit()
    writer.close()
    return written


@pytest.mark.parametrize("counts", [(0, 5), (5, 0), (0, 0), (1, 1), (200, 90), (50, 300)])
def test_a_key_is_found_where_it_stands_last(counts: tuple[int, int]) -> None:
    random = np.random.default_rng(sum(counts))
    wanted, known = (random.integers(0, 256, count).tolist() for count in counts)
    found = positions(keys(wanted), keys(known)).tolist()
    assert found == [len(known) - 1 - known[::-1].index(number) if number in known else -1 for number in wanted]


def test_images_come_from_all_packs_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    written = (
        write_pack(tmp_path / "a", [5, 1, 4]) | write_pack(tmp_path / "b", []) | write_pack(tmp_path / "c", [9, 2])
    )
    packs = [Pack(tmp_path / name) for name in "abc"]
    wanted = [2, 7, 4, 5, 9, 2]
    images = find_images(3, packs, keys(wanted))
    there = np.flatnonzero(images.rows >= 0)
    assert there.tolist() == [0, 2, 3, 4, 5]
    present = images.subset(there).compact()
    assert [pack.path.name for pack in present.packs] == ["a", "c"]
    for index in ([0, 1, 2, 3, 4], [4, 0, 0], []):
        expected = [written[[2, 4, 5, 9, 2][position]] for position in index]
        np.testing.assert_array_equal(present.gather(np.array(index, int)), np.reshape(expected, (-1, 3, 3, 3)))
    assert present.previews()["size"][:, 0].tolist() == [2, 4, 5, 9, 2]
    assert present.previews()["thumbnail"][:, 0, 0, 0].tolist() == [2, 4, 5, 9, 2]


def test_joined_images_are_the_ones_after_the_others(tmp_path: Path) -> None:
    one, other = write_pack(tmp_path / "a", [5, 1, 4]), write_pack(tmp_path / "b", [9, 2])
    first = find_images(3, [Pack(tmp_path / "a")], keys([1, 5]))
    second = find_images(3, [Pack(tmp_path / "b"), Pack(tmp_path / "a")], keys([4, 2]))
    joined = first.joined(second)
    assert len(joined) == 4
    np.testing.assert_array_equal(joined.gather(np.array([3, 2, 1, 0])), [other[2], one[4], one[5], one[1]])


def test_what_was_not_committed_is_not_there_and_is_written_anew(tmp_path: Path) -> None:
    write_pack(tmp_path / "a", [5, 1])
    writer = PackWriter(tmp_path / "a", 3, "folder")
    writer.append(
        keys([7]).tobytes(), Shrunk({3: np.ones((3, 3, 3), np.uint8)}, np.zeros((8, 8, 3), np.uint8), (1, 1)), 3
    )
    writer.close()
    assert len(Pack(tmp_path / "a").digests()) == 2
    written = write_pack(tmp_path / "a", [8])
    images = find_images(3, [Pack(tmp_path / "a")], keys([8, 7]))
    assert images.rows.tolist() == [2, -1]
    np.testing.assert_array_equal(images.gather(np.array([0])), [written[8]])


def test_a_damaged_pack_is_an_error_not_pixels(tmp_path: Path) -> None:
    write_pack(tmp_path / "a", [5, 1])
    with (tmp_path / "a" / "pixels.bin").open("r+b") as file:
        file.truncate(40)
    images = Images(3, [Pack(tmp_path / "a")], np.zeros(2, int), np.arange(2))
    with pytest.raises(OSError, match=r"pixels.bin: image 1 is not there"):
        images.gather(np.array([0, 1]))
