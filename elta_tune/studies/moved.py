"""A study whose data or weights have new paths. It continues if they are the same: ids, ratings and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from elta_tune.config import RATING_PATHS, TrialConfig
from elta_tune.errors import StudyError
from elta_tune.files import write_text
from elta_tune.records import StudyFolder
from elta_tune.studies.plan import StudyPlan, read_facts, read_plan

if TYPE_CHECKING:
    from elta_tune.data.dataset import Dataset, ImageSet

LOCATIONS = ("data.root", *(f"data.{name}" for name in RATING_PATHS), "model.weights")
"""Fields that say where something is, and not what it is."""
Content = Mapping[str, Mapping[str, str]]
"""For each split a hash of its `rows` (ids and ratings) and of its `images` (their bytes); of the weights' `bytes`."""


def moved_fields(own: TrialConfig, requested: TrialConfig) -> dict[str, str]:
    """The new paths of a recipe, by field. A path that only one of the two has is another recipe."""
    paths = {name: (own.get(name), requested.get(name)) for name in LOCATIONS}
    return {name: new for name, (old, new) in paths.items() if old != new and old is not None and new is not None}


def content_of(plan: StudyPlan, dataset: Dataset) -> dict[str, dict[str, str]]:
    """What a study is trained on, for `study.yaml`."""
    splits = (dataset.train, dataset.val, dataset.test, dataset.pool)
    content = {
        split.name: {"rows": split.fingerprint, "images": _digest(split)} for split in splits if split is not None
    }
    weights = plan.recipe.model.weights
    return content | ({} if weights is None else {"weights": {"bytes": _file_hash(weights)}})


def _digest(split: ImageSet) -> str:
    from elta_tune.data.cache.packs import Images

    images = next(iter(split.images.values()))
    assert isinstance(images, Images), "of a data set that was just prepared"
    return hashlib.blake2b(images.digests.tobytes(), digest_size=16).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle_move(folder: StudyFolder, plan: StudyPlan, dataset: Dataset) -> None:
    """Gives the trials of a study the new paths of its plan, if the content is the same.

    Raises:
        StudyError: names what differs, or what can't be compared.
    """
    fields = moved_fields(read_plan(folder).recipe, plan.recipe)
    if not fields:
        return
    now = content_of(plan, dataset)
    if problems := list(_differences(_recorded(folder), now, fields)):
        paths = ", ".join(f"{name}={path}" for name, path in fields.items())
        problem = f"study {folder.name} was started with other data than {paths}: {'; '.join(problems)}"
        raise StudyError(problem, "start another study: `name=NAME`")
    varied = plan.space.parameters
    kept = {name: path for name, path in fields.items() if name not in varied}
    for _, trial in folder.trials():
        if trial.config_file.exists():
            write_text(trial.config_file, trial.config().replace(kept).to_yaml())


def _recorded(folder: StudyFolder) -> Content:
    """What the study was trained on: by `study.yaml`, or in a study of an older version by a trial's result."""
    content = read_facts(folder).get("content")
    if isinstance(content, dict):
        return content
    data = next((result.data for result in folder.results() if result.data is not None), {})
    return {name: {"rows": split.hash} for name, split in data.items()}


def _differences(before: Content, now: Content, fields: Mapping[str, str]) -> Iterator[str]:
    if not before:
        yield "it has no record of its data yet"
    for name, hashes in before.items():
        for what, value in hashes.items():
            if name not in now:
                yield f"{name} is missing"
            elif now[name].get(what) != value:
                yield f"{what} of {name} differ"
    if "model.weights" in fields and "weights" not in before:
        yield "it has no record of its weights"
