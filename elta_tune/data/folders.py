"""Folders of images: what is in one, and which file an id names."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from elta_tune.data.cache.decoding import is_image_start

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".avif", ".avifs", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
"""Of the kinds of images that are decoded."""
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".svg", ".psd", ".xcf", ".ai", ".eps", ".ico", ".tga", ".dib", ".exr"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".qoi"),
)
"""Of kinds of images that are not."""
TRIED_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""Tried in this order after an image's id, before the folder is listed."""
SAME_SUFFIX = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
"""Other spellings of a suffix."""


@dataclass(frozen=True)
class FolderListing:
    """The files of a folder and of all below it, links followed, each folder once.

    `images` are sorted paths relative to `folder`, with "/"; `unused` are the other files and folders, by the reason.
    """

    folder: Path
    images: Sequence[str]
    unused: Mapping[str, Sequence[str]]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to report of the unused files: nothing, or a line."""
        parts = [
            f"{len(names)} {reason} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
            for reason, names in sorted(self.unused.items())
        ]
        return (f"{self.folder}: not used: {'; '.join(parts)}",) if parts else ()


def list_folder(folder: Path) -> FolderListing:
    """Lists the images of a folder and of all below it.

    A linked folder is followed, unless it is in the tree already. What starts with "." or is called __MACOSX is what
    file managers and archives leave there: thumbnails, trash.
    """
    images: list[str] = []
    unused: dict[str, list[str]] = {}
    for name, reason in _walk(folder):
        (images if reason is None else unused.setdefault(reason, [])).append(name)
    return FolderListing(folder, sorted(images), {reason: sorted(names) for reason, names in unused.items()})


def _walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Names of the entries of a tree, and why they are not used. Real folders come first, so that they keep names."""
    visited: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        prefix = folders.pop() if folders else links.pop()
        try:
            status = os.stat(folder / prefix)
            entries = list(os.scandir(folder / prefix)) if (status.st_dev, status.st_ino) not in visited else []
        except OSError:
            yield prefix, "can't be listed"
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                yield name, "hidden"
            elif entry.is_dir(follow_symlinks=False):
                folders.append(f"{name}/")
            elif os.path.isdir(entry):
                links.append(f"{name}/")
            else:
                yield name, _why_unused(entry)


def _why_unused(entry: os.DirEntry[str]) -> str | None:
    suffix = os.path.splitext(entry.name)[1].lower()
    if not os.path.isfile(entry):
        return "dead links" if entry.is_symlink() and not os.path.exists(entry) else "not regular files"
    if suffix in IMAGE_SUFFIXES or (not suffix and _starts_like_image(entry.path)):
        return None
    return "images of kinds that are not supported" if suffix in OTHER_SUFFIXES else "not images"


def _starts_like_image(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return is_image_start(file.read(16))
    return False


class ImageFolder:
    """A folder in which images are found by their ids; it is listed once, and only if an id needs it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def find(self, name: str) -> str | None:
        r"""The file of an id, or None. Links are followed, wherever they lead: many keep their data sets that way.

        If no file has exactly that name, one that differs only in spelling: a suffix that the id leaves out, case,
        "\" for "/", "./", blanks at its ends, and how Unicode composes a letter.
        """
        if self._leads_out(name):
            return None
        base = os.path.join(self.path, name)
        exact = (base + suffix for suffix in TRIED_SUFFIXES if os.path.isfile(base + suffix))
        if (file := next(exact, None)) is not None:
            return file
        candidates = self._spelled_alike(name)
        return os.path.join(self.path, candidates[0]) if len(candidates) == 1 else None

    def why_missing(self, name: str) -> str:
        """Why an id has no file, with the file that it may mean."""
        if self._leads_out(name):
            return f"this id leads out of {self.path}"
        if candidates := self._spelled_alike(name):
            return f"it may be any of {', '.join(map(repr, candidates))}"
        similar = self._by_rough_name.get(_rough_name(_spelling(name)))
        return "there is no such file" + (f"; did you mean {similar!r}?" if similar else "")

    def _leads_out(self, name: str) -> bool:
        """Whether an id names something outside the folder: a rating file of unknown origin must not."""
        if ".." not in name and not os.path.isabs(name):
            return False
        return not os.path.normpath(os.path.join(self.path, name)).startswith(os.path.join(self.path, ""))

    def _spelled_alike(self, name: str) -> list[str]:
        spelling = _spelling(name)
        found = self._by_spelling.get(spelling, [])
        same = [file for file in found if os.path.splitext(file)[0] == name]
        return same if len(same) == 1 else [file for file in found if _spelling(file) == spelling] or found

    @cached_property
    def _files(self) -> list[str]:
        listing = list_folder(Path(self.path))
        return [*listing.images, *listing.unused.get("images of kinds that are not supported", ())]

    @cached_property
    def _by_spelling(self) -> dict[str, list[str]]:
        """Files by their spelling, with their suffix and without it."""
        found: dict[str, list[str]] = {}
        for file in self._files:
            spelling = _spelling(file)
            for key in {spelling, posixpath.splitext(spelling)[0]}:
                found.setdefault(key, []).append(file)
        return found

    @cached_property
    def _by_rough_name(self) -> dict[str, str]:
        return {_rough_name(_spelling(file)): file for file in reversed(self._files)}


def _spelling(name: str) -> str:
    """A name as it would be without differences of spelling."""
    path = posixpath.normpath(unicodedata.normalize("NFC", name).strip().casefold().replace("\\", "/"))
    stem, suffix = posixpath.splitext(path)
    return stem + SAME_SUFFIX.get(suffix, suffix)


def _rough_name(spelling: str) -> str:
    """The letters and digits of a file's name, without its folders, its suffix and leading zeros."""
    stem, suffix = posixpath.splitext(posixpath.basename(spelling))
    name = stem if suffix in (*IMAGE_SUFFIXES, *OTHER_SUFFIXES) else stem + suffix
    return re.sub(r"0+(?=\d)", "", re.sub(r"[\W_]+", "", name))
