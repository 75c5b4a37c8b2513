"""Measuring in a separate process, as an export does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.errors import StudyError
from elta_tune.records import StudyFolder, TrialResult
from elta_tune.results.export import export


def test_new_process_finds_a_changed_weight_in_any_directory(
    study: StudyFolder,
    result: TrialResult,
    cache: Path,
    tmp_path: Path,
    change_weights: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change_weights("head.0.weight", 1.0)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "torch.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(StudyError, match="does not predict as trial 0 did: scores differ by up to"):
        export(study, result, tmp_path / "here" / "best.ckpt", "ckpt", cache=ImageCache(cache))
    assert os.listdir(tmp_path / "here") == ["torch.py"]
