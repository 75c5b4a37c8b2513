"""NNI's own tuners and assessor, each with a thin layer, as they run in NNI's dispatcher process.

NNI calls `make_tuner` and `make_assessor`. The layer proposes the recipe and the space's guesses first. It draws each
proposal from a generator of (seed, its number), so that a resumed study does not repeat itself. And it keeps the
dispatcher alive where an early or late message would end NNI's own code.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elta_tune.config import load_recipe
from elta_tune.errors import ConfigError
from elta_tune.records import StudyFolder
from elta_tune.studies.completion import first_guesses
from elta_tune.studies.nni.folder import NniFolder
from elta_tune.studies.nni.node import end_with_node
from elta_tune.studies.nni.space import Json, Params, decode, encode, encode_with_indices
from elta_tune.studies.plan import StudyPlan, read_plan


def make_tuner(study: str, optimize_mode: str, workers: int, tuner: str) -> Any:
    """NNI's tuner for a study's space.

    Args:
        study: folder of the study.
        optimize_mode: maximize or minimize; NNI's web UI reads it here.
        workers: trials that run at the same time.
        tuner: its name in NNI, for the web UI.
    """
    patch_nesting()
    folder = StudyFolder(Path(study))
    if "SDK_PROCESS" in os.environ:  # this is NNI's dispatcher
        end_with_node(NniFolder(folder))
    plan = read_plan(folder)
    tuners = {"tpe": _tpe, "random": _random, "grid": _grid, "evolution": _evolution}
    return tuners[plan.space.sampler.name](plan, optimize_mode, tried(folder, plan), workers)


def patch_nesting() -> None:
    """Lets NNI's tuners accept a choice within a nested choice, whose parent may not exist in a trial."""
    from nni.common.hpo_utils import ParameterSpec

    def is_activated_in(self: Any, partial_parameters: Mapping[Any, Any]) -> bool:
        return not self.is_nested() or partial_parameters.get(self.key[:-2]) == self.key[-2]

    ParameterSpec.is_activated_in = is_activated_in


MUTATIONS, DRAWS = 100, 200
"""Most individuals that evolution draws until one is new: mutations only, and then random ones, too."""
MOST_LISTED = 10_000
"""Most points of a space that are listed to find the last new ones."""
Points = Mapping[int, Params]
"""Parameters by the number of their trial."""


def tried(folder: StudyFolder, plan: StudyPlan) -> Points:
    """The parameters of all trials that have a folder."""
    points = {}
    for number, trial in folder.trials():
        with contextlib.suppress(ConfigError):  # a damaged one is its trial's matter, which begins again
            points[number] = plan.space.point_of(load_recipe(trial.config_file), plan.recipe)
    return points


def listed_points(plan: StudyPlan) -> list[Params]:
    """Every point of a space, or none if they are too many or can't be counted."""
    sizes = [parameter.count for parameter in plan.space.parameters.values()]
    product = math.prod(size or MOST_LISTED + 1 for size in sizes)
    return list(plan.space.grid(plan.recipe)) if product <= MOST_LISTED else []


def _guided(base: Any, plan: StudyPlan, tried: Points) -> Any:
    """A tuner of NNI's that proposes the study's guesses first and tries no point twice.

    If NNI asks for a trial whose folder exists, because its database is lost, the trial is what its folder says.
    """
    guesses = {**dict(enumerate(first_guesses(plan))), **tried}

    class Guided(base):  # type: ignore[misc]  # chosen at run time
        """`propose`, `remember` and `seed` differ from tuner to tuner."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.lock = threading.RLock()  # NNI calls from two threads

        def update_search_space(self, space: Json) -> None:
            super().update_search_space(space)
            for params in guesses.values():
                self.remember(encode(plan.space, plan.recipe, params))

        def generate_parameters(self, parameter_id: int, **kwargs: Any) -> Any:
            with self.lock:
                self.seed([plan.recipe.seed, parameter_id])
                if parameter_id in guesses:
                    return self.propose(parameter_id, guesses[parameter_id])
                return super().generate_parameters(parameter_id, **kwargs)

        def receive_trial_result(self, parameter_id: int, *args: Any, **kwargs: Any) -> None:
            with self.lock:
                super().receive_trial_result(parameter_id, *args, **kwargs)

        def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
            with self.lock:
                super().trial_end(parameter_id, success, **kwargs)

        def propose(self, parameter_id: int, guess: Params) -> Json:
            return encode(plan.space, plan.recipe, guess)

        def remember(self, parameters: Json) -> None:
            from nni.common.hpo_utils import format_parameters

            self.dedup.add_history(format_parameters(dict(parameters), self.space))

        def seed(self, numbers: Sequence[int]) -> None:
            self.rng = np.random.default_rng(numbers)

    return Guided


def _tpe(plan: StudyPlan, optimize_mode: str, tried: Points, workers: int) -> Any:
    from nni.algorithms.hpo.tpe_tuner import TpeTuner
    from nni.common.hpo_utils import format_parameters

    class Tpe(_guided(TpeTuner, plan, tried)):  # type: ignore[misc]
        def propose(self, parameter_id: int, guess: Params) -> Json:
            parameters = super().propose(parameter_id, guess)
            own = format_parameters(parameters, self.space)
            self._params[parameter_id] = self._running_params[parameter_id] = own
            return parameters

        def receive_trial_result(self, parameter_id: int, *args: Any, **kwargs: Any) -> None:
            # The end of a trial may arrive before its result, and removes it from the running ones.
            self._running_params.setdefault(parameter_id, self._params[parameter_id])
            super().receive_trial_result(parameter_id, *args, **kwargs)

    return Tpe(optimize_mode, tpe_args={"n_startup_jobs": plan.sampler_startup})


def _random(plan: StudyPlan, optimize_mode: str, tried: Points, workers: int) -> Any:
    from nni.algorithms.hpo.random_tuner import RandomTuner

    return _guided(RandomTuner, plan, tried)(optimize_mode=optimize_mode)


def _grid(plan: StudyPlan, optimize_mode: str, tried: Points, workers: int) -> Any:
    import nni
    from nni.algorithms.hpo.gridsearch_tuner import GridSearchTuner
    from nni.common.hpo_utils import deformat_parameters, format_parameters

    class Grid(_guided(GridSearchTuner, plan, tried)):  # type: ignore[misc]
        def remember(self, parameters: Json) -> None:
            own = deformat_parameters(format_parameters(dict(parameters), self.space), self.space)
            self.history.add(nni.dump(own, sort_keys=True))

    return Grid(optimize_mode)


def _evolution(plan: StudyPlan, optimize_mode: str, tried: Points, workers: int) -> Any:
    import nni
    from nni.algorithms.hpo.evolution_tuner import EvolutionTuner, Individual

    sign = 1 if optimize_mode == "maximize" else -1

    class Evolution(_guided(EvolutionTuner, plan, tried)):  # type: ignore[misc]
        population: list[Any]

        def seed(self, numbers: Sequence[int]) -> None:
            self.random_state.seed(np.random.default_rng(numbers).integers(2**32, size=4, dtype=np.uint32))
            random.seed(repr(numbers))

        def update_search_space(self, space: Json) -> None:
            self.known: set[Any] = set()
            super().update_search_space(space)
            self.seed([plan.recipe.seed])
            self.population.clear()
            for _ in range(self.population_size):
                self._random_generate_individual()

        def remember(self, parameters: Json) -> None:
            self.known.add(self.point(parameters))

        def point(self, parameters: Json) -> Any:
            return tuple(decode(plan.space, plan.recipe, parameters).items())

        def propose(self, parameter_id: int, guess: Params) -> Json:
            self.population.insert(0, Individual(encode_with_indices(plan.space, plan.recipe, guess)))
            return super()._generate_individual(parameter_id)

        def _generate_individual(self, parameter_id: int) -> Any:
            """The next individual whose point is new, by NNI's rules as long as these find one."""
            for draw in range(DRAWS):
                population = list(self.population)
                if draw >= MUTATIONS:
                    self._random_generate_individual()
                is_random = any(each.result is None for each in self.population)
                parameters = super()._generate_individual(parameter_id)
                if self.point(parameters) not in self.known:
                    self.remember(parameters)
                    return parameters
                if is_random:  # it is no longer in the population: another one replaces it
                    self._random_generate_individual()
                else:
                    self.population = population
            del self.running_trials[parameter_id]
            left = [point for point in listed_points(plan) if tuple(point.items()) not in self.known]
            if not left:
                raise nni.NoMoreTrialError("each point of the space was tried")
            self.remember(parameters := self.propose(parameter_id, left[self.random_state.randint(len(left))]))
            return parameters

        def import_data(self, data: Sequence[Json]) -> None:
            known = [decode(plan.space, plan.recipe, trial["parameter"]) for trial in data]
            self.population = self.population[len(known) :] + [
                Individual(
                    encode_with_indices(plan.space, plan.recipe, params), result=sign * trial["value"]["default"]
                )
                for params, trial in zip(known, data, strict=True)
            ]

    # NNI proposes nothing while as many trials run as the population has individuals.
    return Evolution(optimize_mode, population_size=max(plan.sampler_startup, workers + 1))


def make_assessor(study: str, optimize_mode: str) -> Any:
    """NNI's Medianstop with the space's warm-up and start-up, and with the complete trials of earlier starts."""
    from nni.algorithms.hpo.medianstop_assessor import MedianstopAssessor
    from nni.assessor import AssessResult

    patch_resuming()
    folder = StudyFolder(Path(study))
    plan = read_plan(folder)
    metric = plan.space.objective.metric

    class Median(MedianstopAssessor):  # type: ignore[misc]
        def recorded(self, number: int) -> dict[int, Any]:
            """The metric of a trial's epochs so far, by NNI's sequence numbers."""
            values = {record.step - 1: record.value(metric) for record in folder.trial(number).epochs()}
            return {sequence: {"default": value} for sequence, value in values.items() if math.isfinite(value)}

        def assess_trial(self, trial_job_id: str, trial_history: list[Any]) -> Any:
            verdict = super().assess_trial(trial_job_id, trial_history)
            return verdict if len(self._completed_avg_history) >= plan.pruner_startup else AssessResult.Good

    assessor = Median(optimize_mode, start_step=plan.pruner_warmup + 1)
    assessor._completed_avg_history.update(running_means(folder, metric))
    return assessor


@functools.cache  # it wraps what it patches
def patch_resuming() -> None:
    """Lets the assessor see resumed trials; NNI's dispatcher would take only their final result.

    What they reported to the earlier start is in their folders.
    """
    import nni
    from nni.runtime import msg_dispatcher

    dispatcher, histories = msg_dispatcher.MsgDispatcher, msg_dispatcher._trial_history
    report, end = dispatcher.handle_report_metric_data, dispatcher.handle_trial_end

    def handle_report_metric_data(self: Any, data: Json) -> None:
        if data["type"] != "PERIODICAL" or not self.is_created_in_previous_exp(data["parameter_id"]):
            report(self, data)
        elif self.assessor is not None:
            histories[data["trial_job_id"]].update(self.assessor.recorded(data["number"]))
            self._handle_intermediate_metric_data({**data, "value": nni.load(data["value"])})

    def handle_trial_end(self: Any, data: Json) -> None:
        end(self, data)
        if histories.pop(data["trial_job_id"], None) is not None:  # otherwise NNI has informed the assessor
            self.assessor.trial_end(data["trial_job_id"], data["event"] == "SUCCEEDED")
        msg_dispatcher._ended_trials.add(data["trial_job_id"])

    dispatcher.handle_report_metric_data, dispatcher.handle_trial_end = handle_report_metric_data, handle_trial_end


def running_means(folder: StudyFolder, metric: str) -> dict[str, list[float]]:
    """For each complete trial, the mean of its metric up to each epoch."""
    means: dict[str, list[float]] = {}
    for number, trial in folder.trials():
        values, result = [record.value(metric) for record in trial.epochs()], trial.result()
        if result is not None and result.state == "complete" and all(map(math.isfinite, values)):
            sums = itertools.accumulate(values)
            means[f"trial {number}"] = [total / count for count, total in enumerate(sums, start=1)]
    return means
