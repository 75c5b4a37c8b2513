"""Batches out of the cache: a thread gathers uint8, the device crops, flips and normalises."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Index = NDArray[np.int64]


class ImageSource(Protocol):
    """N square uint8 images of one size, or rows of what was computed of each."""

    def __len__(self) -> int: ...

    def gather(self, index: Index) -> NDArray[Any]:
        """Images (B, S, S, 3) by their positions (B,)."""
        ...


class ImageRows(ImageSource, Protocol):
    """Images of a split."""

    def subset(self, index: Index) -> ImageRows:
        """Only those at these positions."""
        ...


@dataclass(frozen=True)
class Images:
    """Some rows of a memory-mapped array (M, S, S, 3); `key` names the array for what is derived of it."""

    array: NDArray[np.uint8]
    rows: Index
    key: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, index: Index) -> NDArray[np.uint8]:
        """Images (B, S, S, 3) by their positions (B,)."""
        return self.array[self.rows[index]]

    def subset(self, index: Index) -> Images:
        """Only the images at these positions."""
        return Images(self.array, self.rows[index], self.key)


@dataclass(frozen=True)
class JoinedImages:
    """Several sources as one, in their order."""

    sources: Sequence[ImageSource]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def gather(self, index: Index) -> NDArray[Any]:
        """Images (B, S, S, 3) by their positions (B,)."""
        starts = np.cumsum([0, *(len(source) for source in self.sources)])
        owners = np.searchsorted(starts, index, side="right") - 1
        parts = [source.gather(index[owners == k] - starts[k]) for k, source in enumerate(self.sources)]
        images = np.empty((len(index), *parts[0].shape[1:]), parts[0].dtype)
        for k, part in enumerate(parts):
            images[owners == k] = part
        return images


def epoch_order(count: int, batch_size: int, generator: torch.Generator) -> list[Index]:
    """A random order of `count` images in full batches; the last incomplete one is dropped."""
    order = torch.randperm(count, generator=generator).numpy()
    return [order[start : start + batch_size] for start in range(0, count - batch_size + 1, batch_size)]


def in_order(count: int, batch_size: int) -> list[Index]:
    """All images in their order; nothing is dropped."""
    return [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]


def prefetch(
    images: ImageSource, batches: Sequence[Index], device: torch.device, depth: int = 2
) -> Iterator[tuple[Index, Tensor]]:
    """Yields (index, uint8 (B, S, S, 3) on the device), gathered ahead by a thread that ends with the iteration."""
    ready: queue.Queue[tuple[Index, Tensor] | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: tuple[Index, Tensor] | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def gather() -> None:
        try:
            for index in batches:
                batch = torch.from_numpy(images.gather(index))
                put((index, batch.pin_memory() if device.type == "cuda" else batch))
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again where the batches are used
            put(error)

    thread = threading.Thread(target=gather, name="prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0], item[1].to(device, non_blocking=True)
    finally:
        stopped.set()
        thread.join()


def augment(images: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """A random crop of each image, half of them mirrored, in one gather on the images' device.

    Args:
        images: (B, S, S, 3).
        crop: edge in pixels, at most S.
        generator: on the CPU.

    Returns:
        (B, crop, crop, 3).
    """
    batch, size = images.shape[:2]
    offsets = torch.randint(size - crop + 1, (2, batch), generator=generator)
    mirrored = torch.rand(batch, generator=generator) < 0.5
    span = torch.arange(crop)
    rows = offsets[0][:, None] + span
    columns = offsets[1][:, None] + torch.where(mirrored[:, None], span.flip(0), span)
    rows, columns = rows.to(images.device), columns.to(images.device)
    numbers = torch.arange(batch, device=images.device)[:, None, None]
    return images[numbers, rows[:, :, None], columns[:, None, :]]


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) → float32 (B, 3, S, S), channels last in memory, with the backbone's mean and std (3,)."""
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
