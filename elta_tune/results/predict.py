"""Predictions of a model for unrated images: files, folders, or a list of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.cores import available_cores
from elta_tune.data.batches import Index, in_order, prefetch
from elta_tune.data.cache.builder import why_unreadable
from elta_tune.data.cache.decoding import read_content, shrink, strict_decoding
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.folders import ImageFolder, list_folder
from elta_tune.data.readers import read_unlabelled
from elta_tune.errors import ConfigError, DataError
from elta_tune.method.scores import from_method_scale
from elta_tune.models.checkpoint import Checkpoint
from elta_tune.training.devices import device_of
from elta_tune.training.model import place
from elta_tune.training.predict import predict_batch
from elta_tune.trial import out_of_memory_errors


@dataclass(frozen=True)
class Prediction:
    """One image: its score on the data set's own scale and the shares (K,) of the ratings, None with an `mse` head.

    What has no score has a reason: it can't be read, or the model fails on it. The id of an image in a folder is its
    path below it.
    """

    image_id: str
    score: float | None
    distribution: NDArray[np.float32] | None
    reason: str | None


@dataclass(frozen=True)
class ImageFile:
    """An image by its id, and where it is, None if nowhere."""

    image_id: str
    path: str | Path | None


TABLES = (".csv", ".tsv", ".txt", ".json", ".xlsx", ".xlsm", ".xls")
"""Files that list images; the readers say what they can't read."""
NOT_FINITE = "the model's output is not finite"


def list_images(
    paths: Sequence[Path],
    images: Path | None = None,
    data: DataConfig | None = None,
    on_note: Callable[[str], object] | None = None,
) -> list[ImageFile]:
    """The images that some paths name.

    An image of a folder is called by its path below it, as rating files call it; if several paths are named, by its
    whole path, for there may be one of that name in each.

    Args:
        paths: images, folders (with all below them), or tables with a column of ids (CSV, text, JSON, Excel).
        images: folder of the images of tables; by default `images/` next to each, or else the table's own folder.
        data: how to read tables, where their columns do not show it.
        on_note: called with a line about the files of a folder that are not used.

    Raises:
        ConfigError: there are no paths, or there is a folder of tables' images, but no table.
        DataError: a path or that folder does not exist, a table has no column of ids, or there are no images at all.
    """
    if not paths:
        raise ConfigError("predict: name at least one image, folder or table")
    if (gone := next((path for path in paths if not path.exists()), None)) is not None:
        raise DataError(f"{gone}: there is no such file or folder")
    if images is not None and not images.is_dir():
        raise DataError(f"`images={images}`: there is no such folder")
    if images is not None and not any(map(_is_table, paths)):
        raise ConfigError(f"`images={images}`: is for tables with image ids, and no path is one")
    found: list[ImageFile] = []
    notes: list[str] = []
    data = data or DataConfig()
    for path in paths:
        if path.is_dir():
            listing = list_folder(path)
            found += [ImageFile(name if len(paths) == 1 else str(path / name), path / name) for name in listing.images]
            notes += listing.notes
            if on_note is not None and listing.notes:
                on_note("\n".join(listing.notes))
        elif _is_table(path):
            beside = path.parent / "images"
            folder = ImageFolder(str(images or (beside if beside.is_dir() else path.parent)))
            found += [ImageFile(str(name), folder.find(str(name))) for name in read_unlabelled(path, data).ids]
        else:
            found.append(ImageFile(str(path), path))
    if not found:
        raise DataError("\n".join([f"{', '.join(map(str, paths))}: there are no images", *notes]))
    return found


def _is_own_pipe(path: str | Path) -> bool:
    """Whether a shell hands an image over: `predict MODEL /dev/stdin < FILE`, `predict MODEL <(COMMAND)`."""
    return str(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/"))


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in TABLES and path.is_file()


@dataclass(frozen=True)
class DecodedFiles:
    """Files as a source of batches, decoded as the cache decodes; `reasons` says what could not be, by position."""

    files: Sequence[ImageFile]
    size: int
    workers: ThreadPoolExecutor
    reasons: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files)

    def gather(self, index: Index) -> NDArray[np.uint8]:
        """Images (B, S, S, 3) by their positions (B,); black where one can't be read."""
        return np.stack(list(self.workers.map(self._decoded, index)))

    def _decoded(self, position: int) -> NDArray[np.uint8]:
        path = self.files[position].path
        try:
            if path is None:
                reason = "there is no such file"
            elif os.path.exists(path) and not (os.path.isfile(path) or _is_own_pipe(path)):  # others may never end
                reason = "it is not a regular file"
            else:
                return shrink(read_content(Path(path)), [self.size]).pixels[self.size]
        except Exception as error:  # a hostile file may raise anything; that it is unreadable is all that counts
            reason = why_unreadable(error)
        self.reasons[int(position)] = reason
        return np.zeros((self.size, self.size, 3), np.uint8)


def predict_images(
    checkpoint: Checkpoint,
    files: Sequence[ImageFile],
    *,
    device: str = "cpu",
    batch_size: int | None = None,
    progress: Progress = no_progress,
) -> Iterator[Prediction]:
    """Predicts images in their order, a batch at a time; decoding runs ahead of the model.

    Args:
        batch_size: images at a time; left out, the checkpoint's own for evaluation.

    Raises:
        ModelError: the weights are not the model's.
        OutOfMemoryError: so many images at a time are too many.
    """
    target = device_of(device)
    batches = in_order(len(files), batch_size or checkpoint.config.evaluation.batch_size)
    memory_errors = out_of_memory_errors("take fewer images at a time: `batch_size=N`")
    with strict_decoding(), ThreadPoolExecutor(available_cores()) as workers, memory_errors:
        model = place(checkpoint.model(), target)
        source = DecodedFiles(files, checkpoint.config.data.crop, workers)
        for index, batch in prefetch(source, batches, target):
            outputs, scores = predict_batch(model, batch)
            own = from_method_scale(scores.double().numpy(), checkpoint.scale)
            shares = outputs.softmax(dim=1).numpy() if checkpoint.config.model.head == "emd" else None
            for row, position in enumerate(map(int, index)):
                name, reason = files[position].image_id, source.reasons.get(position)
                if reason is None and not np.isfinite(own[row]):
                    reason = NOT_FINITE
                if reason is not None:
                    yield Prediction(name, None, None, reason)
                else:
                    yield Prediction(name, float(own[row]), None if shares is None else shares[row], None)
            progress(int(index[-1]) + 1, len(files), "predicting")


def best_first(predictions: Iterable[Prediction], higher_is_better: bool = True) -> list[Prediction]:
    """The highest score first; what can't be read comes last."""
    sign = -1 if higher_is_better else 1
    return sorted(predictions, key=lambda one: (one.score is None, sign * (one.score or 0.0)))
