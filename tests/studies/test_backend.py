"""Back ends: what each guarantees, how a study finds its own, what is refused before anything starts."""

import platform
import sys
from contextlib import closing, nullcontext

import pytest

from elta_tune.errors import ConfigError, StudyError
from elta_tune.studies.backend import (
    MODULES,
    LaunchOptions,
    StudyRequest,
    backend_of,
    check_plan,
    choose_backend,
    load_backend,
)
from elta_tune.studies.completion import is_finished
from elta_tune.studies.events import Finished, Started, Stopping
from elta_tune.studies.launch import launch, stop_study
from elta_tune.studies.nni.node import require_nni
from elta_tune.studies.plan import read_plan, record_plan

LR = {"optim.lr": {"type": "float", "low": 3e-4, "high": 3e-2, "log": True}}
NESTED = {
    "mixup.tau_1": {"type": "float", "low": 0.1, "high": 0.9},
    "mixup.tau_2": {"type": "float", "low": 1, "high": 9, "when": "mixup.tau_1 > 0.5"},
}


@pytest.fixture
def options(cache):
    return lambda: LaunchOptions(cache, nullcontext(lambda done, total, what: None), workers=1, devices=["cpu"])


@pytest.mark.parametrize("name", ["optuna", pytest.param("nni", marks=[pytest.mark.nni, pytest.mark.slow])])
class TestEveryBackEnd:
    """Whatever runs a study, it is started, interrupted, continued and finished in the same way."""

    @pytest.fixture
    def request_of(self, name, make_plan_of, study_folder):
        try:
            load_backend(name).check_installed()
        except ConfigError as missing:
            pytest.skip(missing.message)
        study_folder.path.rmdir()

        def request_of(trials, **space):
            plan = make_plan_of(LR, sampler={"name": "random"}, budget={"trials": trials}, **space)
            return StudyRequest(study_folder, plan, name, {})

        return request_of

    def test_study_runs_stops_and_resumes(self, name, request_of, study_folder, options):
        request = request_of(2)
        with launch(request, options()) as running:
            assert (running.folder.path, running.resumed, running.attached) == (study_folder.path, False, False)
            assert running.plan.budget.trials == 2 and len(running.slots) == 1 and running.dataset is not None
            assert bool(running.address) == load_backend(name).has_ui
            seen = []
            with closing(running.events()) as events:
                for event in events:
                    seen.append(event)
                    running.interrupted |= isinstance(event, Started)
        assert running.stopped == "interrupted"
        assert [type(event) for event in seen if isinstance(event, Stopping)] == [Stopping]
        assert not is_finished(study_folder, running.plan) and not study_folder.is_running()

        with launch(request, options()) as running:
            assert running.resumed
            with closing(running.events()) as events:
                seen += events
        finished = [event.result.trial for event in seen if isinstance(event, Finished)]
        assert running.stopped is None and sorted(finished) == [0, 1]
        assert {result.state for result in study_folder.results()} == {"complete"}
        assert backend_of(study_folder).name == name
        assert is_finished(study_folder, read_plan(study_folder))

        with launch(request, options()) as running:
            assert running is None
        assert load_backend(name).find_running(study_folder) is None
        assert not stop_study(study_folder, lambda line: None)

    def test_end_of_the_watcher_ends_the_study(self, request_of, study_folder, options):
        with launch(request_of(1), options()) as running:
            events = running.events()
            assert any(isinstance(event, Started) for event in events)
            events.close()
        assert not study_folder.is_running()
        assert study_folder.results() == []

    def test_a_refused_study_leaves_no_folder(self, request_of, study_folder, options):
        wrong = options().__class__(**{**vars(options()), "devices": ["cuda:77"]})
        with pytest.raises(Exception, match="cuda:77"), launch(request_of(1), wrong):
            pass
        assert not study_folder.path.exists()


def test_the_table_names_every_back_end():
    assert [load_backend(name).name for name in MODULES] == list(MODULES)


@pytest.mark.parametrize(
    ("backend", "parameters", "space", "message"),
    [
        ("nni", LR, {"sampler": {"name": "gp"}}, "sampler.name: nni has no gp; it has tpe, random, grid, evolution"),
        ("nni", LR, {"sampler": {"name": "qmc"}}, "sampler.name: nni has no qmc"),
        ("nni", LR, {"pruner": {"name": "hyperband"}}, "pruner.name: nni has no hyperband; it has median, none"),
        ("nni", LR, {"pruner": {"name": "successive_halving"}}, "pruner.name: nni has no successive_halving"),
        ("nni", LR, {"budget": {"trials": 3, "timeout": "1h"}}, "budget.timeout: NNI can't stop trials"),
        ("nni", NESTED, {}, "parameters.mixup.tau_2.when: NNI supports conditions only on listed values"),
        ("optuna", LR, {"sampler": {"name": "evolution"}}, "sampler.name: optuna has no evolution; it has tpe, gp"),
    ],
)
def test_unsupported_settings_of_a_back_end_are_refused(make_plan_of, backend, parameters, space, message):
    plan = make_plan_of(parameters, **space)
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, load_backend(backend))
    assert message in caught.value.message
    other = "nni" if backend == "optuna" else "optuna"
    assert f"`backend={other}`" in caught.value.hint
    check_plan(plan, load_backend(other))


def test_all_refusals_of_a_plan_are_reported_at_once(make_plan_of):
    plan = make_plan_of(LR, sampler={"name": "qmc"}, pruner={"name": "hyperband"}, budget={"trials": 3, "timeout": 60})
    with pytest.raises(ConfigError) as caught:
        check_plan(plan, load_backend("nni"))
    assert [line.split(":")[0].strip() for line in caught.value.message.splitlines()[1:]] == [
        "sampler.name",
        "pruner.name",
        "budget.timeout",
    ]


def test_a_study_keeps_its_back_end(make_plan_of, study_folder):
    assert choose_backend(study_folder, None).name == "optuna"
    assert choose_backend(study_folder, "nni").name == "nni"
    record_plan(study_folder, make_plan_of(LR), {"backend": "nni"})
    found = [choose_backend(study_folder, None), choose_backend(study_folder, "nni"), backend_of(study_folder)]
    assert [backend.name for backend in found] == ["nni", "nni", "nni"]
    with pytest.raises(StudyError, match="runs under nni, and can't continue under optuna") as caught:
        choose_backend(study_folder, "optuna")
    assert "`name=NAME`" in caught.value.hint


def test_an_unknown_back_end_is_refused(study_folder):
    with pytest.raises(ConfigError, match=r"`backend=nnii`: should be optuna or nni.*did you mean 'nni'"):
        choose_backend(study_folder, "nnii")


@pytest.mark.parametrize(
    ("machine", "message", "hint"),
    [
        ("x86_64", "NNI is not installed", 'pip install "elta-tune[nni]"'),
        ("aarch64", "there is no wheel of NNI 3.0 for Linux aarch64", "use the Optuna back end: `backend=optuna`"),
    ],
)
def test_without_nni_the_message_names_the_install_command(monkeypatch, machine, message, hint):
    monkeypatch.setitem(sys.modules, "nni_node", None)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    with pytest.raises(ConfigError) as caught:
        require_nni()
    assert (caught.value.message, caught.value.hint) == (f"`backend=nni`: {message}", hint)
