"""The images of a split: located in their folder, decoded, or left out with a reason."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.cache.packs import Index
from elta_tune.data.cache.progress import Progress
from elta_tune.data.cache.snapshots import LeftOut
from elta_tune.data.folders import ImageFolder
from elta_tune.data.readers import ImageList, id_bytes
from elta_tune.data.splits import SplitName
from elta_tune.errors import DataError, plural, typed


@dataclass(frozen=True)
class LocatedImages:
    """The files of a split's images: `rows` (M,) of its list have `files` (M)."""

    listed: ImageList
    files: Sequence[str]
    rows: Index
    missing: LeftOut


def locate_images(config: DataConfig, lists: Mapping[SplitName, ImageList]) -> dict[SplitName, LocatedImages]:
    """Looks for the images of some splits.

    Raises:
        DataError: there is no folder of images.
    """
    folders: dict[str, ImageFolder] = {}
    located = {}
    for name, listed in lists.items():
        path = images_folder(config, listed)
        located[name] = _locate(listed, folders.setdefault(path, ImageFolder(path)))
    return located


def _locate(listed: ImageList, folder: ImageFolder) -> LocatedImages:
    files = [folder.find(name) for name in listed.ids]
    exists = np.array([file is not None for file in files], dtype=bool)
    missing = tuple((str(name), folder.why_missing(name)) for name in listed.ids[~exists])
    return LocatedImages(listed, [file for file in files if file is not None], np.flatnonzero(exists), missing)


def images_folder(config: DataConfig, listed: ImageList) -> str:
    """Where the images of a split are.

    Raises:
        DataError: there is no such folder.
    """
    folder = listed.file if listed.file.is_dir() else config.path("images")
    if folder is None or not folder.is_dir():
        raise DataError(
            f"data.images: {folder or 'not set'}: there is no such folder", "name the folder: `data.images=FOLDER`"
        )
    return str(folder)


def fingerprint(ids: NDArray[np.object_], scores: NDArray[np.float64] | None) -> str:
    """A hash of the ids and labels of a split in any order: only results with the same hash are compared."""
    order = sorted(range(len(ids)), key=ids.__getitem__)
    digest = hashlib.blake2b(id_bytes("\0".join(ids[order])), digest_size=8)
    digest.update(b"" if scores is None else scores[order].round(6).tobytes())
    return digest.hexdigest()


def edges_of(name: SplitName, config: DataConfig) -> list[int]:
    """The sizes at which a split's images are needed."""
    return [config.crop] if name in ("val", "test") else [config.resize, config.crop]


def look_up_images(
    located: Mapping[SplitName, LocatedImages], config: DataConfig, cache: ImageCache
) -> dict[SplitName, CachedImages]:
    """What the cache has of the images of some splits."""
    return {name: cache.look_up(item.files, edges_of(name, config)) for name, item in located.items()}


def decode_missing(
    cached: Mapping[SplitName, CachedImages], cache: ImageCache, progress: Progress, limit: int | None = None
) -> dict[SplitName, CachedImages]:
    """The images of some splits, with those that were missing.

    Raises:
        DataError: the disk has no room for them, or more than `limit` bytes would be written.
    """
    parts = cache.refuse_too_large(list(cached.values()), limit, progress)
    return {
        name: cache.complete(part, progress, f"decoding {name} images")
        for name, part in zip(cached, parts, strict=True)
    }


def left_out(located: LocatedImages, cached: CachedImages | None) -> LeftOut:
    """The images of a split that can't be used: those that are missing, then those that are unreadable."""
    ids = located.listed.ids[located.rows]
    unreadable = sorted(cached.unreadable.items()) if cached else ()
    return (*located.missing, *((str(ids[index]), reason) for index, reason in unreadable))


def too_few(listed: ImageList, missing: LeftOut, config: DataConfig) -> DataError | None:
    """Why too few images of a split can be used, or None if enough can."""
    total = len(listed.ids)
    if len(missing) <= config.max_missing * total and len(missing) < total:
        return None
    shown = "; ".join(f"{name!r}: {reason}" for name, reason in missing[:3])
    more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
    verb = "is" if len(missing) == 1 else "are"
    share = math.ceil(100 * len(missing) / total) / 100
    settings = {"data.max_missing": max(share, 0.05)} if share < 1 else {}
    folder = "name the folder of the images: `data.images=FOLDER`"
    return DataError(
        f"{listed.file}: {len(missing)} of {plural(total, 'image')} {verb} missing or unreadable, more than "
        f"data.max_missing ({config.max_missing:.2%}) allows: {shown}{more}",
        f"{folder}; or allow more: {typed(settings)}" if settings else folder,
        settings,
    )


def snapshot_key(name: SplitName, config: DataConfig, listed: ImageList) -> bytes:
    """What names the snapshot of a split: its ids, their order, their folder, and the sizes."""
    edges = map(str, sorted(set(edges_of(name, config))))
    key = "\0".join([images_folder(config, listed), *edges, "", *listed.ids])
    return hashlib.blake2b(id_bytes(key), digest_size=16).digest()
