"""What has to hold before a training starts: the checks of `data check`, `space check`, `train` and `run`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from elta_tune.config import TrialConfig
from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import Progress
from elta_tune.data.check import Examined, examine
from elta_tune.data.dataset import Dataset
from elta_tune.data.prepare import prepare
from elta_tune.errors import EltaTuneError
from elta_tune.executors import Slot, plan_slots
from elta_tune.studies.plan import StudyPlan, configurations
from elta_tune.training.backbone import check_backbone, check_model
from elta_tune.training.devices import available_devices, check_devices
from elta_tune.training.self_training import check_fits, compute_frozen


def choose_slots(devices: Sequence[str] | None, workers: int | None) -> list[Slot]:
    """Slots for a number of trials at a time, on some devices.

    Args:
        devices: their names; None: every GPU, or else the CPU.
        workers: trials at a time; None: one per device.

    Raises:
        ModelError: a device is not here.
        ConfigError: no device, or no worker.
    """
    names = available_devices() if devices is None else devices
    check_devices(names)
    return plan_slots(names, workers)


def preflight_study(plan: StudyPlan, slots: Sequence[Slot], cache: ImageCache, progress: Progress) -> Dataset:
    """Does `preflight` for all that a study may train; returns its data."""
    return preflight(list(configurations(plan)), cache, progress, {slot.device for slot in slots})


def preflight(
    configs: Sequence[TrialConfig], cache: ImageCache, progress: Progress, devices: Collection[str] = ()
) -> Dataset:
    """Prepares the data that the configurations share, and builds each model once.

    Args:
        devices: where the trials will run. On the CPU alone, a frozen backbone's features are computed here, with all
            cores; the memory of a GPU is left to the trials, the first of which computes them.

    Raises:
        DataError: a rating file, an image or a batch size.
        ModelError: an unknown backbone, weights that do not fit.
    """
    dataset = prepare(configs[0].data, cache, progress, recipes=configs, refusals=_unknown_models(configs))
    for config in configs:
        check_fits(config, dataset)
        if config.model.freeze and set(devices) == {"cpu"}:
            compute_frozen(config, dataset, cache, progress)
    return dataset


def check(
    configs: Sequence[TrialConfig],
    cache: ImageCache,
    progress: Progress,
    *,
    limit: int | None = None,
) -> Examined:
    """Finds all for which `preflight` would refuse these configurations, without a download of weights.

    Args:
        limit: bytes that the decoded images may take.

    Raises:
        DataError: there is no room for the decoded images.
    """
    examined = examine(
        configs[0].data,
        cache,
        progress,
        recipes=configs,
        limit=limit,
        refusals=_unknown_models(configs),
    )
    if examined.refusals:
        return examined
    return replace(examined, refusals=_refused(configs, check_model))


def _unknown_models(configs: Sequence[TrialConfig]) -> list[EltaTuneError]:
    return _refused(configs, lambda config: check_backbone(config.model))


def _refused(configs: Sequence[TrialConfig], check: Callable[[TrialConfig], None]) -> list[EltaTuneError]:
    """What a check refuses of the configurations, each message once."""
    refusals: dict[str, EltaTuneError] = {}
    for config in configs:
        try:
            check(config)
        except EltaTuneError as error:
            refusals.setdefault(error.message, error)
    return list(refusals.values())
