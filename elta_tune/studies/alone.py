"""A trial without a study, in the calling process."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from elta_tune.config import TrialConfig
from elta_tune.data.cache import Progress
from elta_tune.records import TrialFolder
from elta_tune.studies.preflight import preflight
from elta_tune.training.devices import choose_device
from elta_tune.trial import Reporter, run_trial


def train_alone(
    config: TrialConfig,
    folder: Path,
    reporter: Reporter,
    preparing: AbstractContextManager[Progress],
    *,
    device: str,
    cache: Path,
) -> dict[str, Any]:
    """Trains a recipe to its end, or goes on where the folder stands.

    Args:
        preparing: is entered while the data are prepared, and yields what hears how far that is.
        device: its name, or `auto`.

    Returns:
        The content of `result.json`.

    Raises:
        EltaTuneError: data, model, device or folder do not allow the training to start.
    """
    device = choose_device(device)
    with preparing as progress:
        preflight([config], cache, progress, [device])
    trial = TrialFolder(folder.absolute())
    with trial.lock():
        return run_trial(config, trial, reporter, cache=cache, device=device)
