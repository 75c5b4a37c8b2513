"""From a recipe's `data` section to the lists of its splits: done once, before anything looks at an image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from elta_tune.config import DataConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import Progress, no_progress
from elta_tune.data.demo import with_demo
from elta_tune.data.splits import SPLITS, SplitRatings, read_splits


@dataclass(frozen=True)
class ResolvedData:
    """A `data` section with its files resolved, and their content: the only input of later steps."""

    config: DataConfig
    ratings: SplitRatings


def resolve(
    config: DataConfig, cache: ImageCache, progress: Progress = no_progress, *, splits: Collection[str] = SPLITS
) -> ResolvedData:
    """Draws the demo's photographs if they are needed, and reads the rating files.

    Args:
        splits: the names of those that are read; a test or a pool that is nowhere is left out.

    Raises:
        DataError: a file is missing or wrong, or the demo can't be written.
    """
    config = with_demo(config, cache, progress)
    return ResolvedData(config, read_splits(config, splits))
