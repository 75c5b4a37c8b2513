"""Names of columns: they are compared without case, blanks, `_` and `-`."""

from __future__ import annotations

import re
from collections.abc import Sequence

ID_COLUMNS = (
    *("image_id", "image", "image_name", "Image name", "imageName", "ImageFile", "ID", "name", "Image", "file"),
    *("img_name", "filename", "file_name"),
)
OTHER_ID_COLUMNS = (
    *("img", "img_id", "img_file", "img_path", "image_path", "file_path", "path", "photo", "photo_id", "photo_name"),
    *("picture", "picture_id", "dist_img", "distorted_image"),
)
"""Less certain names: used only if none of `ID_COLUMNS` exists."""
SCORE_COLUMNS = ("score", "MOS", "mos", "gt_score", "gt", "aestheticScore_mean", "mos_quality", "Score")
OTHER_SCORE_COLUMNS = (
    *("mean_score", "score_mean", "avg_score", "average_score", "rating", "mean_rating", "rating_mean", "avg_rating"),
    *("average_rating", "mean", "mean_opinion_score", "opinion_score", "aesthetic_score", "aesthetics_score"),
    *("quality_score", "quality", "dmos", "label"),
)
"""Less certain names: used only if none of `SCORE_COLUMNS` exists."""
SPLIT_COLUMNS = ("official_split", "split", "set")


def simplified(name: str) -> str:
    """A name without what does not count: case, blanks, `_` and `-`."""
    return re.sub(r"[\s_-]+", "", name).casefold()


ID_NAMES = frozenset(map(simplified, ID_COLUMNS))


def known_columns(columns: Sequence[str], known: Sequence[str], others: Sequence[str] = ()) -> list[str]:
    """The columns of a known name: spelled exactly so or, where none is, similarly, or else one of the others."""
    exact = [name for name in columns if name in known]
    similar = [[name for name in columns if simplified(name) in map(simplified, names)] for names in (known, others)]
    return exact or similar[0] or similar[1]


def find_column(columns: Sequence[str], name: str) -> str | None:
    """The column of a name that was typed, None if there is none or if several are spelled similarly."""
    found = known_columns(columns, [name])
    return found[0] if len(found) == 1 else None
