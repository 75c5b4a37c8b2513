"""A trial without a study, in the calling process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from elta_tune.config import TrialConfig
from elta_tune.data.cache.images import Progress
from elta_tune.records import TrialFolder
from elta_tune.studies.preflight import preflight
from elta_tune.training.devices import choose_device
from elta_tune.trial import Reporter, run_trial


def train_alone(
    config: TrialConfig,
    folder: Path,
    reporter: Reporter,
    *,
    device: str,
    cache: Path,
    progress: Progress,
    on_ready: Callable[[], None],
) -> dict[str, Any]:
    """Trains a recipe to its end, or goes on where the folder stands.

    Args:
        device: its name, or `auto`.
        on_ready: is called when the data are prepared, before the first epoch.

    Returns:
        The content of `result.json`.

    Raises:
        EltaTuneError: data, model, device or folder do not allow the training to start.
    """
    device, trial = choose_device(device), TrialFolder(folder.absolute())
    preflight([config], cache, progress, [device])
    on_ready()
    with trial.lock():
        return run_trial(config, trial, reporter, cache=cache, device=device)
