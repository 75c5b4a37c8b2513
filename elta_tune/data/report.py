"""A data set in numbers: what a check shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elta_tune.data.cache.image_cache import CachedImages, ImageCache
from elta_tune.data.check import Examined
from elta_tune.data.images import LocatedImages, fingerprint, left_out
from elta_tune.data.overlap import Shared
from elta_tune.data.readers import Ratings
from elta_tune.data.splits import SplitName
from elta_tune.errors import EltaTuneError
from elta_tune.method.metrics import segments, tail_cuts

BINS = 18
"""Equal parts of the scale, as in the metric `bmae`: half a point each on 1…10."""


def describe(examined: Examined) -> dict[str, Any]:
    """Splits, labels, images and the reasons to refuse a study, ready for JSON.

    Labels are those of the images that can be used, and of all where no image was looked at. Where a rating file can't
    be read, there are no splits.
    """
    verdict = {
        "ok": not examined.refusals,
        "shared": [_shared(item) for item in examined.shared],
        "refusals": list(map(_refusal, examined.refusals)),
        "notes": list(examined.notes),
    }
    if not {"train", "val"} <= examined.data.ratings.labelled.keys():
        return {**verdict, "splits": {}}
    train = examined.data.ratings.labelled["train"]
    edges = np.linspace(*train.scale, BINS + 1)
    scores = examined.usable("train", train).scores
    cuts = None if not len(scores) else tail_cuts(scores)
    return {
        **verdict,
        "scale": list(train.scale),
        "threshold": train.threshold,
        "higher_is_better": train.higher_is_better,
        "bins": None if train.bins is None else train.bins.tolist(),
        "spread": train.is_spread,
        "tail_cuts": None if cuts is None else list(cuts),
        "histogram_edges": edges.tolist(),
        "splits": {name: _split(examined, name, edges, cuts) for name in examined.data.ratings.all},
    }


def _refusal(error: EltaTuneError) -> dict[str, Any]:
    return {"message": _shown(error.message), "hint": error.hint}


def describe_cache(
    located: Mapping[SplitName, LocatedImages], cached: Mapping[SplitName, CachedImages], cache: ImageCache
) -> dict[str, Any]:
    """Per split: its cached images, the bytes that decoding the others takes, and the paths that are not files."""
    return {
        "cache": str(cache.root),
        "free": cache.free_bytes,
        "missing": sum(part.missing_bytes for part in cached.values()),
        "splits": {
            name: {
                "images": len(part.files),
                "edges": list(part.images),
                "decoded": len(part.decoded),
                "unreadable": len(part.unreadable),
                "not_found": len(located[name].missing),
                "bytes": sum(edge**2 * 3 for edge in part.images) * len(part.files),
                "missing": part.missing_bytes,
            }
            for name, part in cached.items()
        },
    }


def _split(
    examined: Examined, name: SplitName, edges: NDArray[np.float64], cuts: tuple[float, float] | None
) -> dict[str, Any]:
    listed = examined.data.ratings.all[name]
    used = examined.usable(name, listed)
    ratings = used if isinstance(used, Ratings) else None
    scores = None if ratings is None else ratings.scores
    return {
        "file": str(listed.file),
        "origin": listed.origin,
        "format": listed.format,
        "rows": len(listed.ids),
        "images": _images(examined, name),
        "twice": sum(item.first is item.second and item.first.name == name for item in examined.shared),
        "votes": None if ratings is None or ratings.votes is None else _spread(ratings.votes, ("min", "median", "max")),
        "mos": None if scores is None else _spread(scores, ("mean", "std", "min", "max")),
        "histogram": None if scores is None else np.histogram(scores, edges)[0].tolist(),
        "segments": None if ratings is None or cuts is None else _segments(ratings, cuts),
        "hash": fingerprint(used.ids, scores),
    }


def _images(examined: Examined, name: SplitName) -> dict[str, Any] | None:
    """Counts of images; `unreadable` and `used` are unknown if the images were not decoded."""
    if name not in examined.located:
        return None
    located, cached = examined.located[name], examined.cached.get(name)
    return {
        "found": len(located.files),
        "missing": len(located.missing),
        "unreadable": None if cached is None else len(cached.unreadable),
        "used": None if cached is None else len(cached.decoded),
        "left_out": [{"id": _shown(image), "reason": _shown(reason)} for image, reason in left_out(located, cached)],
    }


def _shown(text: str) -> str:
    """Text that can be written: names of files need not be UTF-8."""
    return text.encode(errors="backslashreplace").decode()


def _spread(values: NDArray[np.float64], names: tuple[str, ...]) -> dict[str, float | None]:
    return {name: float(getattr(np, name)(values)) if len(values) else None for name in names}


def _segments(ratings: Ratings, cuts: tuple[float, float]) -> dict[str, int]:
    found = segments(ratings.scores, cuts, ratings.higher_is_better)
    return {name: int(members.sum()) for name, members in found.items()}


def _shared(item: Shared) -> dict[str, Any]:
    members = zip(("first", "second"), (item.first, item.second), item.ids, strict=True)
    places = {
        place: {"split": member.name, "file": str(member.file), "id": _shown(image)} for place, member, image in members
    }
    return {**places, "same": item.how, "refused": item.is_leak}
