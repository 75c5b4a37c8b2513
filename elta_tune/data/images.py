"""The images of a split: looked for in their folder, decoded, or left out with a reason."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.cache.images import CachedImages, Progress, complete, find_room, look_up
from elta_tune.data.cache.packs import Index
from elta_tune.data.readers import ImageList, id_bytes
from elta_tune.data.splits import SplitName
from elta_tune.errors import DataError, plural, typed

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Tried in this order after an image's id."""
LeftOut = tuple[tuple[str, str], ...]
"""Ids of images, and why each can't be used."""


@dataclass(frozen=True)
class Found:
    """A split whose images were looked for: `rows` (M,) of its ratings have `files` (M)."""

    name: SplitName
    ratings: ImageList
    files: Sequence[str]
    rows: Index
    missing: LeftOut


def find_files(config: DataConfig, name: SplitName, ratings: ImageList) -> Found:
    """Looks for the images of a split.

    Raises:
        DataError: there is no folder of images.
    """
    folder = images_folder(config, ratings)
    files = [image_file(folder, name_) for name_ in ratings.ids]
    there = np.array([file is not None for file in files], dtype=bool)
    missing = tuple((str(name_), _why_missing(folder, name_)) for name_ in ratings.ids[~there])
    return Found(name, ratings, [file for file in files if file is not None], np.flatnonzero(there), missing)


def images_folder(config: DataConfig, ratings: ImageList) -> str:
    """Where the images of a split are.

    Raises:
        DataError: there is no such folder.
    """
    folder = ratings.file if ratings.file.is_dir() else config.path("images")
    if folder is None or not folder.is_dir():
        raise DataError(
            f"data.images: {folder or 'not set'}: there is no such folder", "name the folder: `data.images=FOLDER`"
        )
    return str(folder)


def fingerprint(ids: NDArray[np.object_], scores: NDArray[np.float64] | None) -> str:
    """A hash of the ids and labels of a split, in whatever order: results are compared on the same one only."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    digest = hashlib.blake2b(id_bytes("\0".join(ids[order])), digest_size=8)
    digest.update(b"" if scores is None else scores[order].round(6).tobytes())
    return digest.hexdigest()


def edges_of(name: SplitName, config: DataConfig) -> list[int]:
    """The sizes at which a split's images are wanted."""
    return [config.crop] if name in ("val", "test") else [config.resize, config.crop]


def look_up_files(found: Mapping[SplitName, Found], config: DataConfig, cache: Path) -> dict[SplitName, CachedImages]:
    """What the cache has of the images of some splits."""
    return {name: look_up(cache, item.files, edges_of(name, config)) for name, item in found.items()}


def decode_files(
    cached: Mapping[SplitName, CachedImages], cache: Path, progress: Progress, limit: int | None = None
) -> dict[SplitName, CachedImages]:
    """The images of some splits, with those that were missing.

    Raises:
        DataError: there is no room for them, or more than `limit` bytes would be written.
    """
    parts = find_room(cache, list(cached.values()), limit, progress)
    return {
        name: complete(cache, part, progress, f"decoding {name} images")
        for name, part in zip(cached, parts, strict=True)
    }


def left_out(found: Found, cached: CachedImages | None) -> LeftOut:
    """The images of a split that can't be used: those that are missing, then those that are unreadable."""
    ids = found.ratings.ids[found.rows]
    unreadable = sorted(cached.unreadable.items()) if cached else ()
    return (*found.missing, *((str(ids[index]), reason) for index, reason in unreadable))


def too_few(ratings: ImageList, missing: LeftOut, config: DataConfig) -> DataError | None:
    """Why too few images of a split can be used, or None if enough can."""
    total = len(ratings.ids)
    if len(missing) <= config.max_missing * total and len(missing) < total:
        return None
    shown = "; ".join(f"{name!r}: {reason}" for name, reason in missing[:3])
    more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
    verb = "is" if len(missing) == 1 else "are"
    share = math.ceil(100 * len(missing) / total) / 100
    settings = {"data.max_missing": max(share, 0.05)} if share < 1 else {}
    folder = "name the folder of the images: `data.images=FOLDER`"
    return DataError(
        f"{ratings.file}: {len(missing)} of {plural(total, 'image')} {verb} missing or unreadable, more than "
        f"data.max_missing ({config.max_missing:.2%}) allows: {shown}{more}",
        f"{folder}; or allow more: {typed(settings)}" if settings else folder,
        settings,
    )


def image_file(folder: str, name: str) -> str | None:
    """An image by its id. Links are followed, wherever they lead: many keep their data sets that way."""
    if _leads_out(folder, name):
        return None
    base = os.path.join(folder, name)
    return next((base + suffix for suffix in SUFFIXES if os.path.isfile(base + suffix)), None)


def _why_missing(folder: str, name: str) -> str:
    return f"this id leads out of {folder}" if _leads_out(folder, name) else "there is no such file"


def _leads_out(folder: str, name: str) -> bool:
    """Whether an id names something outside the folder: a rating file from elsewhere must not."""
    if ".." not in name and not os.path.isabs(name):
        return False
    return not os.path.normpath(os.path.join(folder, name)).startswith(os.path.join(folder, ""))
