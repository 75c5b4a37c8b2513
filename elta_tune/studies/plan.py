"""The plan of a study, `study.yaml`: everything that decides its results, and its budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from elta_tune.config import TrialConfig
from elta_tune.documents import Document, parse, read_document, shown
from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder
from elta_tune.space.space import Budget, SearchSpace, hold_without_pool


@dataclass(frozen=True)
class StudyPlan:
    """A resolved space and recipe. The recipe's seed is the study's."""

    space: SearchSpace
    recipe: TrialConfig
    note: str | None = None
    """What was held back, said once at the start."""

    @property
    def budget(self) -> Budget:
        """When the study ends."""
        return self.space.budget

    @property
    def sampler_startup(self) -> int:
        """Trials before the sampler learns; they fit the budget, or a short study would be a random search."""
        return self.space.sampler.startup_trials or min(10, max(4, self.budget.trials // 3))

    @property
    def pruner_startup(self) -> int:
        """Trials that end before the median pruner prunes any."""
        return self.space.pruner.startup_trials or min(8, max(3, self.budget.trials // 3))

    @property
    def pruner_warmup(self) -> int:
        """Epochs that each trial may always run."""
        return math.ceil(self.space.pruner.warmup * self.recipe.training.epochs)

    def with_budget(self, budget: Budget) -> StudyPlan:
        """The same plan with another budget."""
        return replace(self, space=self.space.model_copy(update={"budget": budget}))


def make_plan(space: SearchSpace, recipe: TrialConfig) -> StudyPlan:
    """Joins a space and a recipe: the objective chooses each trial's best epoch; no pseudo-labels, no self-training."""
    return StudyPlan(*hold_without_pool(space, space.with_objective(recipe)))


def configurations(plan: StudyPlan) -> Iterator[TrialConfig]:
    """The recipe, and it with each extreme of what a space varies of model and batch, and of what reads features."""
    yield plan.recipe
    names = ["training.batch_size", *(["self_training.rounds"] if plan.recipe.model.freeze else [])]
    for name, parameter in plan.space.parameters.items():
        if name.startswith("model.") or name in names:
            yield from (plan.recipe.replace({name: value}) for value in parameter.probes())


def raise_budget(own: Budget, trials: int | None, timeout: float | None) -> Budget:
    """A study's budget, raised by what a command asks for; what it does not ask for stays.

    Raises:
        StudyError: it asks for less than the study has.
    """
    if trials is not None and trials < own.trials:
        raise StudyError(f"`trials={trials}`: the study's budget is {own.trials} already, and may only be raised")
    if timeout is not None and timeout < (own.timeout or math.inf):
        limit = f"{own.timeout:g}s already" if own.timeout else "without limit"
        raise StudyError(f"`timeout={timeout:g}s`: the study's time is {limit}, and may only be raised")
    return Budget(trials=trials or own.trials, timeout=timeout or own.timeout)


def record_plan(folder: StudyFolder, plan: StudyPlan, facts: Mapping[str, Any]) -> None:
    """Writes `study.yaml`, or a raised budget into the existing one.

    Args:
        facts: on the run that started the study: files, versions, commit, back end.
    """
    if folder.exists():
        if read_plan(folder) == plan:
            return
        facts = read_facts(folder)
    content = {
        **facts,
        "seed": plan.recipe.seed,
        "note": plan.note,
        "space": plan.space.model_dump(mode="json"),
        "recipe": plan.recipe.model_dump(mode="json"),
    }
    folder.create(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_plan(folder: StudyFolder) -> StudyPlan:
    """Reads `study.yaml`.

    Raises:
        ConfigError: it is damaged.
    """
    content, name = read_document(folder.study_file).content, f"{folder.study_file}"
    for key in ("space", "recipe"):
        if key not in content:  # an empty recipe would be one of defaults
            raise ConfigError(f"{name}: is damaged: {key} is missing")
    space = parse(SearchSpace, Document(name, content["space"]))
    recipe = parse(TrialConfig, Document(name, content["recipe"]))
    return StudyPlan(space, recipe, content.get("note"))


def read_facts(folder: StudyFolder) -> dict[str, Any]:
    """The part of `study.yaml` about the run."""
    content = read_document(folder.study_file).content
    return {key: value for key, value in content.items() if key not in ("space", "recipe")}


def refuse_changes(folder: StudyFolder, own: StudyPlan, asked: StudyPlan) -> None:
    """A study continues as it was started, apart from its budget.

    Raises:
        StudyError: names each field that differs.
    """
    differences = list(_differences(_comparable(own), _comparable(asked)))
    if differences:
        lines = [f"  {key}: {before} → {after}" for key, before, after in differences[:12]]
        if len(differences) > 12:
            lines.append(f"  … and {len(differences) - 12} more")
        raise StudyError(
            "\n".join([f"study {folder.name} was started with another configuration:", *lines]),
            "start another study: `name=NAME`; or go on with this one by the command that started it",
        )


def _comparable(plan: StudyPlan) -> dict[str, Any]:
    space = plan.space.model_dump(mode="json", exclude={"budget"})
    return {"space": space, "recipe": plan.recipe.model_dump(mode="json")}


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, str, str]]:
    """Dotted keys with different values, and both values as text."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            yield from _differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        if list(before) != list(after) and set(before) == set(after):
            yield f"order of {key}", ", ".join(before), ", ".join(after)
    elif before != after:
        yield key, shown(before, limit=200), shown(after, limit=200)
