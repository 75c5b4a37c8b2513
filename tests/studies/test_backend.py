"""A study keeps its back end, and what a back end can't do is refused before anything starts."""

import platform
import sys

import pytest

from elta_tune.errors import ConfigError, StudyError
from elta_tune.studies.backend import backend_of, check_plan, choose_backend
from elta_tune.studies.nni.node import require_nni
from elta_tune.studies.plan import record_plan

LR = {"optim.lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True}}
NESTED = {
    "mixup.tau_1": {"type": "float", "low": 0.1, "high": 0.9},
    "mixup.tau_2": {"type": "float", "low": 1, "high": 9, "when": "mixup.tau_1 > 0.5"},
}


@pytest.mark.parametrize(
    ("backend", "parameters", "space", "told"),
    [
        ("nni", LR, {"sampler": {"name": "gp"}}, "sampler.name: nni has no gp; it has tpe, random, grid, evolution"),
        ("nni", LR, {"sampler": {"name": "qmc"}}, "sampler.name: nni has no qmc"),
        ("nni", LR, {"pruner": {"name": "hyperband"}}, "pruner.name: nni has no hyperband; it has median, none"),
        ("nni", LR, {"pruner": {"name": "successive_halving"}}, "pruner.name: nni has no successive_halving"),
        ("nni", LR, {"budget": {"trials": 3, "timeout": "1h"}}, "budget.timeout: NNI can't stop trials"),
        ("nni", NESTED, {}, "parameters.mixup.tau_2.when: NNI can only let it depend on listed values"),
        ("optuna", LR, {"sampler": {"name": "evolution"}}, "sampler.name: optuna has no evolution; it has tpe, gp"),
    ],
)
def test_what_a_back_end_can_not_do_is_refused(make_plan_of, backend, parameters, space, told):
    plan = make_plan_of(parameters, **space)
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, backend)
    assert told in caught.value.message
    other = "nni" if backend == "optuna" else "optuna"
    assert f"--backend {other}" in caught.value.hint
    check_plan(plan, other)


def test_all_that_can_not_be_done_is_told_at_once(make_plan_of):
    plan = make_plan_of(LR, sampler={"name": "qmc"}, pruner={"name": "hyperband"}, budget={"trials": 3, "timeout": 60})
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, "nni")
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]] == [
        "sampler.name",
        "pruner.name",
        "budget.timeout",
    ]


def test_a_new_study_takes_the_back_end_that_is_asked_for_and_keeps_it(make_plan_of, study_folder):
    assert choose_backend(study_folder, None) == "optuna"
    assert choose_backend(study_folder, "nni") == "nni"
    record_plan(study_folder, make_plan_of(LR), {"backend": "nni"})
    assert (
        choose_backend(study_folder, None) == choose_backend(study_folder, "nni") == backend_of(study_folder) == "nni"
    )
    with pytest.raises(StudyError, match="runs under nni, and can't go on under optuna") as caught:
        choose_backend(study_folder, "optuna")
    assert "--name NAME" in caught.value.hint


def test_an_unknown_back_end_is_refused(study_folder):
    with pytest.raises(ConfigError, match="--backend nnii: should be optuna or nni — did you mean 'nni'"):
        choose_backend(study_folder, "nnii")


@pytest.mark.parametrize(
    ("machine", "told", "hint"),
    [
        ("x86_64", "NNI is not installed", 'pip install "elta-tune[nni]"'),
        ("aarch64", "there is no wheel of NNI 3.0 for Linux aarch64", "use the Optuna back end: --backend optuna"),
    ],
)
def test_without_nni_the_way_to_it_or_around_it_is_told(monkeypatch, machine, told, hint):
    monkeypatch.setitem(sys.modules, "nni_node", None)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(ConfigError) as caught:
        require_nni()
    assert (caught.value.message, caught.value.hint) == (f"--backend nni: {told}", hint)
