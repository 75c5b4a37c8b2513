"""Which back end runs a study: Optuna or NNI. What one of them can't do is refused before anything starts."""

from __future__ import annotations

from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder
from elta_tune.studies.nni.space import to_nni
from elta_tune.studies.plan import StudyPlan, read_facts
from elta_tune.suggestions import did_you_mean

BACKENDS = ("optuna", "nni")
SAMPLERS = {
    "optuna": ("tpe", "gp", "random", "qmc", "grid"),
    "nni": ("tpe", "random", "grid", "evolution"),
}
PRUNERS = {"optuna": ("median", "successive_halving", "hyperband", "none"), "nni": ("median", "none")}


def choose_backend(folder: StudyFolder, asked: str | None) -> str:
    """The back end that is asked for, or the study's own; a new study's is Optuna.

    Raises:
        ConfigError: there is no such back end.
        StudyError: the study runs under the other one.
    """
    if asked is not None and asked not in BACKENDS:
        raise ConfigError(f"--backend {asked}: should be optuna or nni{did_you_mean(asked, BACKENDS)}")
    if not folder.exists():
        return asked or BACKENDS[0]
    own = backend_of(folder)
    if asked not in (None, own):
        raise StudyError(
            f"study {folder.name} runs under {own}, and can't go on under {asked}",
            "leave --backend out to go on with it; or start another study: --name NAME",
        )
    return own


def backend_of(folder: StudyFolder) -> str:
    """The back end of a study."""
    return str(read_facts(folder).get("backend", BACKENDS[0]))


def check_plan(plan: StudyPlan, backend: str) -> None:
    """Refuses what a back end can't do.

    Raises:
        ConfigError: names every such field.
    """
    space, problems = plan.space, []
    for what, name, known in (("sampler", space.sampler.name, SAMPLERS), ("pruner", space.pruner.name, PRUNERS)):
        if name not in known[backend]:
            problems.append(f"{what}.name: {backend} has no {name}; it has {', '.join(known[backend])}")
    if backend == "nni":
        if plan.budget.timeout is not None:
            problems.append("budget.timeout: NNI can't stop trials when the time is up; give a number of trials alone")
        try:
            to_nni(space, plan.recipe)
        except ConfigError as error:
            problems.append(error.message)
    if problems:
        other = next(name for name in BACKENDS if name != backend)
        raise ConfigError(
            "\n".join([f"--backend {backend} can't run this space:", *(f"  {problem}" for problem in problems)]),
            f"change the space, or use --backend {other}",
        )
