"""The model card: what users of a shared model should know."""

from __future__ import annotations

import math
from pathlib import Path

from elta_tune.models.checkpoint import Checkpoint, without_folders

CARD = """\
---
library_name: elta-tune
tags: [image-aesthetics-assessment, elta, timm]
license: unknown
---

# {backbone}, trained with ELTA

Predicts {what} of a photograph's aesthetic rating, from {low:g} to {high:g}{direction}.
A {backbone} of timm with an `{head}` head, trained by elta-tune with ELTA (Liu, He, Ming, Xie, Ma: *ELTA: An Enhancer
against Long-Tail for Aesthetics-oriented Models*, ICML 2024).

## Use

    {use}

Images are turned as EXIF says, converted to RGB, squashed to {size}×{size} (bilinear) and normalised with the
backbone's mean and std.

## Metrics

{metrics}

## Data

{data}

## Licence

The licences of the training images, of their ratings and of the backbone's first weights bind this model, too. They are
not known here: *to be filled in by whoever passes it on.*

## Configuration

    {configuration}
"""


def model_card(checkpoint: Checkpoint, use: str) -> str:
    """Markdown with metrics, splits and configuration; the licence of the data is left open.

    Args:
        use: commands that use the exported file.
    """
    config = checkpoint.config
    splits = checkpoint.source.get("data", {})
    data = [f"- {name}: {Path(s['file']).name}, {s['rows']:,} images, hash {s['hash']}" for name, s in splits.items()]
    metrics = [f"| {name} | {_number(value)} |" for name, value in checkpoint.metrics.items()]
    table = ["On the validation split, which chose the epoch:", "", "| metric | value |", "|---|---|", *metrics]
    low, high = checkpoint.scale
    return CARD.format(
        backbone=config.model.backbone,
        what="the distribution and the mean" if config.model.head == "emd" else "the mean",
        low=low,
        high=high,
        direction="" if checkpoint.higher_is_better else "; a low one is a good one",
        head=config.model.head,
        use=use.replace("\n", "\n    "),
        size=config.data.crop,
        metrics="\n".join(table) if metrics else "None are known here.",
        data="\n".join(data) or "Not known here.",
        configuration=without_folders(config).to_yaml().replace("\n", "\n    ").rstrip(),
    )


def _number(value: float | None) -> str:
    if isinstance(value, int):  # a count of images
        return f"{value:,}"
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"
