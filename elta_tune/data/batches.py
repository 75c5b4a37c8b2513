"""Batches out of the cache: a thread reads, crops and mirrors uint8, the device normalises."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]


class ImageSource(Protocol):
    """N square uint8 images of one size, or a row for each of what was computed of it."""

    def __len__(self) -> int: ...

    def gather(self, index: Index) -> NDArray[Any]:
        """Images (B, S, S, 3) by their positions (B,)."""
        ...


class SplitImages(ImageSource, Protocol):
    """The images of a split."""

    def subset(self, index: Index) -> Self:
        """Only those at these positions."""
        ...

    def joined(self, other: Self) -> Self:
        """These, and those of another after them."""
        ...


def epoch_order(count: int, batch_size: int, generator: torch.Generator) -> list[Index]:
    """A random order of `count` images in full batches; the last incomplete one is dropped."""
    order = torch.randperm(count, generator=generator).numpy()
    return [order[start : start + batch_size] for start in range(0, count - batch_size + 1, batch_size)]


def in_order(count: int, batch_size: int) -> list[Index]:
    """All images in their order; nothing is dropped."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def prefetch(
    images: ImageSource,
    batches: Sequence[Index],
    device: torch.device,
    change: Callable[[Tensor], Tensor] | None = None,
    depth: int = 2,
) -> Iterator[tuple[Index, Tensor]]:
    """Yields (index, uint8 (B, S, S, 3) on the device), read ahead by a thread that ends with the iteration.

    Args:
        change: what the thread makes of each batch, in their order.
    """

    def read(index: Index) -> Tensor:
        batch = torch.from_numpy(images.gather(index))
        batch = batch if change is None else change(batch)
        return batch.pin_memory() if device.type == "cuda" else batch

    # Its thread is waited for even if the interpreter ends amid the iteration: within torch, a daemon thread aborts it.
    reader = ThreadPoolExecutor(1, "prefetch")
    try:
        coming = (reader.submit(read, index) for index in batches)
        ahead = deque(islice(coming, depth))
        for index in batches:
            ahead.extend(islice(coming, 1))
            yield index, ahead.popleft().result().to(device, non_blocking=True)
    finally:
        reader.shutdown(cancel_futures=True)


def augment(images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """A random crop of each image, half of them mirrored.

    Args:
        images: (B, S, S, 3).
        crop: edge in pixels, at most S.

    Returns:
        (B, crop, crop, 3).
    """
    count, size = images.shape[:2]
    offsets = torch.randint(size - crop + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    crops = images.new_empty(count, crop, crop, 3)
    # Copied one by one, since whole rows are: a gather of all pixels at once takes 20 times as long.
    for number, (top, left, mirror) in enumerate(zip(*offsets.tolist(), mirrored.tolist(), strict=True)):
        window = images[number, top : top + crop, left : left + crop]
        crops[number] = window.flip(1) if mirror else window
    return crops


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) → float32 (B, 3, S, S), channels last in memory, with the backbone's mean and std (3,)."""
    count, size = images.shape[:2]
    scale, shift = (1 / (255 * std)).repeat(size), (-mean / std).repeat(size)
    # Over whole rows and in place: as arithmetic on triples of channels it takes four times as long.
    rows = images.reshape(count * size, size * 3).float()
    return torch.addcmul(shift, rows, scale, out=rows).view(count, size, size, 3).permute(0, 3, 1, 2)
