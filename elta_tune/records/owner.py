"""Which study, trial or cache a folder belongs to: what a command writes must not go there."""

from __future__ import annotations

import re
from pathlib import Path

from elta_tune.errors import StudyError

CACHE_PARTS = re.compile(r"pixels-[0-9a-f]{8}|demo-[0-9a-f]{12}|features-[0-9a-f]{24}")
"""Names of the folders in a cache of images."""
SHIPPED = tuple(Path(__file__).parents[2] / name for name in ("trials", "search_spaces"))
"""Recipes and spaces of a checkout."""


def owner_of(path: Path) -> str | None:
    """What owns the place of a file or folder to be written: a study, a trial, the image cache, what ships; or None."""
    places = (path.absolute(), *path.absolute().parents, path.resolve(), *path.resolve().parents)
    return next((owner for place in places if (owner := _owner(place)) is not None), None)


def refuse_owned_trial(folder: Path) -> None:
    """Refuses a folder for a single training that something else owns; an earlier training there may resume.

    Raises:
        StudyError: says what owns it.
    """
    place = folder.parent if is_trial(folder) and not (folder / "study.yaml").exists() else folder
    if (owner := owner_of(place)) is not None:
        raise StudyError(f"{folder}: belongs to {owner}", "choose another `out`")


def _owner(folder: Path) -> str | None:
    if (folder / "study.yaml").is_file() or (folder / "study.lock").is_file():
        return f"the study {folder}"
    if is_trial(folder):
        return f"the trial {folder}"
    if CACHE_PARTS.fullmatch(folder.name) and folder.is_dir():
        return f"the image cache {folder.parent}"
    return f"what elta-tune ships: {folder}" if folder in SHIPPED else None


def is_trial(folder: Path) -> bool:
    """Whether a folder holds a trial, begun or ended."""
    known = ("metrics.jsonl", "last.ckpt", "result.json", "trial.lock")
    return (folder / "config.yaml").is_file() and any((folder / name).exists() for name in known)
