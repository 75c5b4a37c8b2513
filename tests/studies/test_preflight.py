"""What would make a trial of the study fail is found before the first one starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from elta_tune.data.cache.image_cache import ImageCache
from elta_tune.data.cache.progress import no_progress
from elta_tune.errors import DataError, ModelError
from elta_tune.studies.plan import StudyPlan, configurations
from elta_tune.studies.preflight import preflight

MakePlan = Callable[..., StudyPlan]


def test_each_model_and_the_extreme_batches_of_a_space_are_tried(make_plan_of: MakePlan) -> None:
    plan = make_plan_of(
        {
            "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1},
            "model.backbone": {"type": "categorical", "choices": ["test_efficientnet", "test_resnet", "test_vit"]},
            "training.batch_size": {"type": "int", "low": 4, "high": 28, "step": 4},
        }
    )
    tried = [(config.model.backbone, config.training.batch_size) for config in configurations(plan)]
    assert tried[0] == ("test_efficientnet", 8)  # the recipe
    assert set(tried) == {
        *((name, 8) for name in ("test_efficientnet", "test_resnet", "test_vit")),
        ("test_efficientnet", 4),
        ("test_efficientnet", 28),
    }


@pytest.mark.parametrize(("freeze", "tried"), [(True, [0, 2]), (False, [0])])
def test_rounds_of_a_space_are_checked_if_pool_features_matter(
    freeze: bool, tried: list[int], make_plan_of: MakePlan
) -> None:
    plan = make_plan_of({"self_training.rounds": {"type": "int", "low": 0, "high": 2}})
    plan = replace(plan, recipe=plan.recipe.replace({"model.freeze": freeze, "simloss.weight": 0}))
    assert sorted({config.self_training.rounds for config in configurations(plan)}) == tried


def test_bad_backbone_of_any_trial_is_refused_before_decoding(make_plan_of: MakePlan, tmp_path: Path) -> None:
    plan = make_plan_of(
        {"model.backbone": {"type": "categorical", "choices": ["test_efficientnet", "test_efficientnett"]}}
    )
    with pytest.raises(ModelError, match=r"model\.backbone: timm has no 'test_efficientnett'.*did you mean"):
        preflight(list(configurations(plan)), ImageCache(tmp_path / "cache"), no_progress)
    assert not (tmp_path / "cache").exists()


def test_a_batch_that_only_a_later_trial_has_is_refused(make_plan_of: MakePlan, cache: Path) -> None:
    plan = make_plan_of({"training.batch_size": {"type": "categorical", "choices": [8, 64]}})
    with pytest.raises(DataError, match=r"training\.batch_size: 64 is more than the 32 images"):
        preflight(list(configurations(plan)), ImageCache(cache), no_progress)


def test_the_data_are_ready_afterwards(make_plan_of: MakePlan, cache: Path) -> None:
    plan = make_plan_of({"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1}})
    dataset = preflight(list(configurations(plan)), ImageCache(cache), no_progress)
    splits = (dataset.train, dataset.val, dataset.test, dataset.pool)
    assert [split and len(split.ids) for split in splits] == [32, 16, 16, 16]
