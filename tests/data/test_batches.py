"""Batches hold the right images, cropped and mirrored at random, and their thread ends with them."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from elta_tune.data.batches import augment, epoch_order, in_order, normalize, prefetch

CPU = torch.device("cpu")


def numbered(count: int, size: int = 4) -> NDArray[np.uint8]:
    """Images (N, S, S, 3) that are all different."""
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Images:
    """Images in memory, of which one may not be readable."""

    array: NDArray[np.uint8]
    broken: int = -1

    def __len__(self) -> int:
        return len(self.array)

    def gather(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images by their positions."""
        if self.broken in index:
            raise OSError("the disk is gone")
        return self.array[index]


def prefetch_threads() -> list[threading.Thread]:
    """The threads of `prefetch` that are still there."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_batches_come_in_their_order_with_their_images() -> None:
    array = numbered(10)
    batches = [np.array([3, 1]), np.array([9, 9, 0]), np.array([5])]
    got = list(prefetch(Images(array), batches, CPU))
    assert [index.tolist() for index, _ in got] == [[3, 1], [9, 9, 0], [5]]
    for index, batch in got:
        np.testing.assert_array_equal(batch.numpy(), array[index])
    assert not prefetch_threads()


def test_the_thread_changes_each_batch_in_their_order() -> None:
    array = numbered(10)
    generator, again = (torch.Generator().manual_seed(2) for _ in range(2))
    batches = in_order(10, 4)
    got = list(prefetch(Images(array), batches, CPU, lambda batch: augment(batch, 3, generator)))
    for (index, batch), expected in zip(got, batches, strict=True):
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(batch, augment(torch.from_numpy(array[expected]), 3, again))


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_the_thread_ends_when_the_batches_are_no_longer_wanted(taken: int) -> None:
    iterator = prefetch(Images(numbered(100)), in_order(100, 2), CPU)
    assert len(list(itertools.islice(iterator, taken))) == taken
    iterator.close()  # type: ignore[attr-defined]
    assert not prefetch_threads()


ABANDON = """
import numpy as np, torch
from elta_tune.data.batches import prefetch

class Images:
    def gather(self, index):
        return np.zeros((len(index), 4, 4, 3), np.uint8)

def change(batch):
    square = torch.rand(400, 400)
    for _ in range(50):
        square = (square @ square).softmax(1)
    return batch

torch.set_num_threads(1)
held = prefetch(Images(), [np.arange(2)] * 1000, torch.device("cpu"), change)
next(held)
"""


def test_a_process_may_end_amid_the_batches() -> None:
    """As by Ctrl-C, whose traceback holds the iteration: a thread that is within torch then would abort it."""
    done = subprocess.run([sys.executable, "-c", ABANDON], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_where_batches_are_used_ends_the_thread() -> None:
    def use() -> Iterator[None]:
        for _, _ in prefetch(Images(numbered(100)), in_order(100, 2), CPU):
            raise RuntimeError("diverged")
        yield

    with pytest.raises(RuntimeError, match="diverged"):
        next(use())
    assert not prefetch_threads()


def test_error_in_the_thread_is_raised_in_the_consumer() -> None:
    batches = prefetch(Images(numbered(8), broken=5), in_order(8, 2), CPU)
    assert [next(batches)[0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    assert not prefetch_threads()


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (9, 3), (3, 3), (2, 3)])
def test_training_uses_full_batches_and_evaluation_every_image(count: int, batch_size: int) -> None:
    batches = epoch_order(count, batch_size, torch.Generator().manual_seed(0))
    taken = [int(row) for batch in batches for row in batch]
    assert {len(batch) for batch in batches} <= {batch_size}
    assert len(set(taken)) == len(taken) == count // batch_size * batch_size
    assert np.concatenate(in_order(count, batch_size)).tolist() == list(range(count))


def test_each_order_is_another() -> None:
    generator = torch.Generator().manual_seed(0)
    orders = [np.concatenate(epoch_order(50, 5, generator)).tolist() for _ in range(2)]
    assert orders[0] != orders[1] != sorted(orders[1])
    again = epoch_order(50, 5, torch.Generator().manual_seed(0))
    assert np.concatenate(again).tolist() == orders[0]


def literal_crop(image: NDArray[np.uint8], top: int, left: int, crop: int, mirrored: bool) -> list[list[list[int]]]:
    """One pixel after the other."""
    rows = []
    for row in range(top, top + crop):
        pixels = [[int(value) for value in image[row, column]] for column in range(left, left + crop)]
        rows.append(pixels[::-1] if mirrored else pixels)
    return rows


@pytest.mark.parametrize(("size", "crop"), [(6, 4), (5, 5), (4, 1)])
def test_a_crop_is_some_window_of_its_own_image_perhaps_mirrored(size: int, crop: int) -> None:
    count = 600
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), axis=-1)
    images = np.empty((count, size, size, 3), np.uint8)
    images[..., :2] = grid  # a pixel says where it was, and in which image
    images[..., 2] = np.arange(count)[:, None, None] % 251
    crops = augment(torch.from_numpy(images), crop, torch.Generator().manual_seed(3))
    assert crops.shape == (count, crop, crop, 3)
    found: list[tuple[int, int, bool]] = []
    for number, got in enumerate(crops.tolist()):
        mirrored = got[0][0][1] > got[0][-1][1]
        top, left = got[0][0][0], min(got[0][0][1], got[0][-1][1])
        assert got == literal_crop(images[number], top, left, crop, mirrored)
        found.append((top, left, mirrored))
    offsets = range(size - crop + 1)
    assert {(top, left) for top, left, _ in found} == set(itertools.product(offsets, offsets))
    if crop > 1:
        # For each side of the window: a fair coin of 600 throws is off by .1 once in a million.
        assert abs(np.mean([mirrored for *_, mirrored in found]) - 0.5) < 0.1


def test_pixels_are_normalised_by_the_backbones_mean_and_std() -> None:
    images = torch.from_numpy(numbered(2))
    mean, std = [0.1, 0.5, 0.9], [0.2, 0.3, 0.4]
    got = normalize(images, torch.tensor(mean), torch.tensor(std))
    assert got.shape == (2, 3, 4, 4)
    for n, c, y, x in itertools.product(range(2), range(3), range(4), range(4)):
        assert got[n, c, y, x].item() == pytest.approx((int(images[n, y, x, c]) / 255 - mean[c]) / std[c], abs=1e-5)
