"""What has to hold before a training may start: found out here, in seconds, not by the trial that trips over it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from elta_tune.config import TrialConfig
from elta_tune.data.cache import Progress
from elta_tune.data.dataset import Dataset, prepare
from elta_tune.studies.plan import StudyPlan
from elta_tune.training.model import check_backbone
from elta_tune.training.self_training import check_fits, compute_frozen


def configurations(plan: StudyPlan) -> Iterator[TrialConfig]:
    """The recipe, and it with each extreme of what a space varies of model and batch."""
    yield plan.recipe
    for name, parameter in plan.space.parameters.items():
        if name.startswith("model.") or name == "training.batch_size":
            yield from (plan.recipe.replace({name: value}) for value in parameter.probes())


def preflight(
    configs: Sequence[TrialConfig], cache: Path, progress: Progress, devices: Collection[str] = ()
) -> Dataset:
    """Prepares the data that the configurations share, and builds each model once.

    Args:
        devices: where the trials will run. On the CPU alone, a frozen backbone's features are computed here, with all
            cores; the memory of a GPU is left to the trials, the first of which computes them.

    Raises:
        DataError: a rating file, an image or a batch size.
        ModelError: an unknown backbone, weights that do not fit.
    """
    for config in configs:
        check_backbone(config.model)
    dataset = prepare(configs[0].data, cache, progress)
    for config in configs:
        check_fits(config, dataset)
        if config.model.freeze and set(devices) == {"cpu"}:
            compute_frozen(config, dataset, cache, progress)
    return dataset
