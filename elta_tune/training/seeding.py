"""Random numbers by stage: each draws from a generator of (seed, stage), so that none disturbs another."""

from __future__ import annotations

import hashlib

import torch


def stage_seed(seed: int, *stage: str | int) -> int:
    """A 63-bit seed for a named stage of a training, e.g. ``stage_seed(0, "order", round, epoch)``."""
    text = "/".join(str(part) for part in (seed, *stage))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def stage_generator(seed: int, *stage: str | int) -> torch.Generator:
    """A CPU generator for a named stage; what it draws is the same on every device."""
    return torch.Generator().manual_seed(stage_seed(seed, *stage))
