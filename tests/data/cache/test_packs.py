"""Images are read from their pack and row; a pack that is cut is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from elta_tune.data.cache.decoding import Shrunk
from elta_tune.data.cache.packs import Images, Pack, PackWriter, is_whole


def write_pack(path: Path, numbers: list[int], edge: int = 3, count: int = 0) -> dict[int, np.ndarray]:
    """Appends an image for each number to a pack that has `count` images."""
    writer = PackWriter(path, edge, count)
    written = {}
    for number in numbers:
        written[number] = np.random.default_rng(number).integers(0, 256, (edge, edge, 3), np.uint8)
        thumbnail = np.full((8, 8, 3), number, np.uint8)
        assert writer.append(Shrunk({edge: written[number]}, thumbnail, (number, 1))) == count + len(written) - 1
    writer.sync()
    writer.close()
    return written


def images_at(packs: list[Pack], owners: list[int], rows: list[int]) -> Images:
    """Images of 3 px, whose digests are their positions."""
    digests = np.repeat(np.arange(len(rows), dtype=np.uint8)[:, None], 16, axis=1)
    return Images(3, packs, np.array(owners), np.array(rows), digests)


def test_images_come_in_the_order_asked_for(tmp_path: Path) -> None:
    written = (
        write_pack(tmp_path / "a", [5, 1, 4]) | write_pack(tmp_path / "b", []) | write_pack(tmp_path / "c", [9, 2])
    )
    images = images_at([Pack(tmp_path / name) for name in "abc"], [2, -1, 0, 0, 2], [1, -1, 2, 0, 0])
    present = images.subset(np.flatnonzero(images.rows >= 0))
    assert [pack.path.name for pack in present.packs] == ["a", "c"]
    assert present.digests[:, 0].tolist() == [0, 2, 3, 4]
    for index in ([0, 1, 2, 3], [3, 0, 0], []):
        expected = [written[[2, 4, 5, 9][position]] for position in index]
        np.testing.assert_array_equal(present.gather(np.array(index, int)), np.reshape(expected, (-1, 3, 3, 3)))
    assert present.previews()["size"][:, 0].tolist() == [2, 4, 5, 9]
    assert present.previews()["thumbnail"][:, 0, 0, 0].tolist() == [2, 4, 5, 9]


def test_joined_images_follow_one_another(tmp_path: Path) -> None:
    one, other = write_pack(tmp_path / "a", [5, 1, 4]), write_pack(tmp_path / "b", [9, 2])
    first = images_at([Pack(tmp_path / "a")], [0, 0], [1, 0])
    joined = first.joined(images_at([Pack(tmp_path / "b"), Pack(tmp_path / "a")], [1, 0], [2, 1]))
    assert len(joined) == 4
    assert joined.digests[:, 0].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(joined.gather(np.array([3, 2, 1, 0])), [other[2], one[4], one[5], one[1]])


def test_leftovers_of_a_killed_writer_are_overwritten(tmp_path: Path) -> None:
    write_pack(tmp_path / "a", [5, 1])
    write_pack(tmp_path / "a", [7], count=2)  # which the index never named
    written = write_pack(tmp_path / "a", [8], count=2)
    np.testing.assert_array_equal(images_at([Pack(tmp_path / "a")], [0], [2]).gather(np.array([0])), [written[8]])
    assert (tmp_path / "a" / "pixels.bin").stat().st_size == 3 * 27


def test_a_cut_pack_is_an_error_not_pixels(tmp_path: Path) -> None:
    write_pack(tmp_path / "a", [5, 1])
    assert is_whole(tmp_path / "a", 3, 2)
    for name in ("pixels.bin", "previews.bin"):
        with (tmp_path / "a" / name).open("r+b") as file:
            file.truncate(40)
        assert not is_whole(tmp_path / "a", 3, 2)
    images = images_at([Pack(tmp_path / "a")], [0, 0], [0, 1])
    with pytest.raises(OSError, match=r"pixels.bin: is damaged: it ends before image 1"):
        images.gather(np.array([0, 1]))
    with pytest.raises(OSError, match=r"previews.bin: is damaged"):
        images.previews()
