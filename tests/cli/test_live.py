"""The view of a running study: it fits a terminal of any size, with any number of running trials."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from elta_tune.cli.live import EpochLines, LiveView, View, study_view
from elta_tune.cli.output import unfailing
from elta_tune.cli.study_progress import StudyProgress, place_of
from elta_tune.config import TrialConfig
from elta_tune.executors import Job, Reported
from elta_tune.records import EpochRecord, State, TrialResult
from elta_tune.space.space import SearchSpace
from elta_tune.studies.events import Finished, Paused, Retried, Started, Stopping, Tick
from elta_tune.studies.plan import StudyPlan, make_plan

PARAMETERS: dict[str, Any] = {
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1},
    "mixup.alpha": {"type": "categorical", "choices": [0.5, None]},
    "mixup.tau_1": {"type": "float", "low": 0.05, "high": 1},
    "mixup.tau_2": {"type": "float", "low": 0.5, "high": 10},
    "simloss.weight": {"type": "float", "low": 0.01, "high": 10},
    "self_training.rounds": {"type": "int", "low": 0, "high": 2},
    "sharpening.temperature": {"type": "float", "low": 0.5, "high": 6},
    "sharpening.threshold": {"type": "float", "low": 0.1, "high": 0.95},
}
POINT = dict(zip(PARAMETERS, (0.0060612, None, 0.069912, 0.51234, 0.13112, 2, 3.2412, 0.32312), strict=True))
LONG = "lr=0.00606  alpha=null  tau_1=0.0699  tau_2=0.512  weight=0.131  rounds=2  temperature=3.24  threshold=0.323"


@pytest.fixture
def plan(recipe: TrialConfig) -> StudyPlan:
    space = {"parameters": PARAMETERS, "budget": {"trials": 12}}
    return make_plan(SearchSpace.model_validate(space), recipe.replace({"training.epochs": 8}))


def started(plan: StudyPlan, number: int, *, resumed: bool = False, **changes: Any) -> Started:
    config = plan.recipe.replace({**POINT, **changes})
    return Started(Job(number, config, POINT, Path("nowhere"), Path("nowhere")), resumed)


def line(step: int, value: float, *, round: int = 0, epoch: int | None = None, mae: float = 0.5) -> EpochRecord:
    """What a trial records of an epoch, in part."""
    values = {"srcc": value, "plcc": value, "accuracy": value, "mae": mae, "loss": 0.25, "images_per_second": 1234.5}
    return EpochRecord(step, round, epoch or step, 1, values, 2.0 * step)


def result(number: int, state: State, value: float | None = 0.7, seconds: float = 10.0, **more: float) -> TrialResult:
    metrics = {} if value is None else {"srcc": value, "plcc": value + 0.01, "accuracy": value + 0.02, **more}
    reason = "out of memory" if state == "failed" else None
    return TrialResult(number, state, reason, value, 4, 0, 4, metrics, POINT, (), seconds)


def terminal(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=height)


def shown(view: LiveView) -> list[str]:
    """The lines of the live part."""
    console = Console(file=io.StringIO(), color_system=None, width=view.console.width, height=view.console.height)
    console.print(view.render())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def view_of(plan: StudyPlan, workers: int, console: Console, results: list[TrialResult] | None = None) -> LiveView:
    view = LiveView(StudyProgress(plan, workers, list(results or ())), console, lambda number: [])
    for number in range(workers):
        view.show(started(plan, number))
        view.show(Reported(number, line(9, 0.7123, round=1, epoch=1)))
    return view


@pytest.mark.parametrize("workers", [1, 3, 8, 16, 40])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 24), (160, 50), (40, 10)])
def test_the_live_part_fits_the_terminal(plan: StudyPlan, workers: int, width: int, height: int) -> None:
    ended = [result(100, "complete", 0.8), result(101, "pruned"), result(102, "failed", None)]
    lines = shown(view_of(plan, workers, terminal(width, height), ended))
    assert max(cell_len(text) for text in lines) <= width
    assert len(lines) < height
    rows = [text for text in lines if text.startswith("trial ")]
    if len(rows) < workers:
        assert lines[-3].strip() == f"… and {workers - len(rows)} more running"
        assert len(lines) == height - 1  # there was no more room
    assert lines[-2].startswith("best: trial 100  srcc 0.8000")
    assert lines[-1].startswith("2 of 12 trials · 1 pruned · 1 failed")


def test_row_describes_its_trial_fully(plan: StudyPlan) -> None:
    lines = shown(view_of(plan, 1, terminal(160)))
    assert lines[1].split() == [
        *("trial", "0", "round", "1", "epoch", "1/1"),
        next(word for word in lines[1].split() if "━" in word or "╺" in word),
        *("srcc", "0.7123", "best", "0.7123"),
    ]
    assert lines[2].strip() == LONG


def test_with_less_room_parameters_are_cut_then_left_out(plan: StudyPlan) -> None:
    whole, cut, none = (shown(view_of(plan, workers, terminal())) for workers in (5, 8, 16))
    assert sum("threshold=0.323" in text for text in whole) == 5
    assert sum(text.strip().startswith("lr=0.00606") and text.rstrip().endswith("…") for text in cut) == 8
    assert [text for text in none if "lr=" in text] == []
    assert sum(text.startswith("trial ") for text in none) == 16


def test_columns_agree_between_rows(plan: StudyPlan) -> None:
    view = view_of(plan, 1, terminal())
    view.show(started(plan, 11, **{"self_training.rounds": 0}))
    rows = [text for text in shown(view) if text.startswith("trial ")]
    assert len({text.index("epoch") for text in rows}) == 2  # the round comes before it
    assert len({text.index("srcc") for text in rows}) == 1


def test_the_bar_grows_with_the_epochs(plan: StudyPlan) -> None:
    """Of 8 epochs and two rounds of one, 10 in all."""
    view = view_of(
        plan, 1, Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system="truecolor")
    )
    lengths = []
    for step in (1, 5, 10):
        view.show(Reported(0, line(step, 0.5)))
        row = next(
            text for text in view.console.render_lines(view.render()) if any("trial" in part.text for part in text)
        )
        done = [part for part in row if "━" in part.text and part.style and part.style.color]
        lengths.append(len(done[0].text))
    assert lengths == sorted(set(lengths))


def test_current_and_best_differ_and_nan_is_neither(plan: StudyPlan) -> None:
    view = view_of(plan, 0, terminal())
    view.show(started(plan, 3))
    for step, value in enumerate((math.nan, 0.6, 0.8, 0.7), start=1):
        view.show(Reported(3, line(step, value)))
    assert any("srcc 0.7000  best 0.8000" in text for text in shown(view))


def test_a_metric_that_falls_is_best_where_it_is_least(recipe: TrialConfig) -> None:
    space = {"parameters": PARAMETERS, "objective": {"metric": "mae"}}
    plan = make_plan(SearchSpace.model_validate(space), recipe)
    view = view_of(plan, 0, terminal())
    view.show(started(plan, 0))
    for step, value in enumerate((0.5, 0.3, 0.4), start=1):
        view.show(Reported(0, line(step, 0.1, mae=value)))
    assert any("mae 0.4000  best 0.3000" in text for text in shown(view))


def test_ended_and_paused_trials_leave_the_live_part(plan: StudyPlan) -> None:
    view = view_of(plan, 3, terminal())
    view.show(Finished(result(0, "complete", 0.75)))
    view.show(Stopping("interrupted"))
    view.show(Paused(1))
    lines = shown(view)
    assert [text.split()[1] for text in lines if text.startswith("trial ")] == ["2"]
    assert lines[-1] == "1 of 12 trials · stopping after this epoch; Ctrl-C kills"
    printed = view.console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial   0 complete  srcc 0.7500  plcc 0.7600  accuracy 0.7700  step 4  10 s" in printed


def test_lines_wrap_at_words_in_a_terminal_and_never_in_a_log(recipe: TrialConfig) -> None:
    space = {"parameters": PARAMETERS, "objective": {"metric": "mae"}}
    plan = make_plan(SearchSpace.model_validate(space), recipe)
    ended = result(2, "complete", -0.7, mae=0.5)
    whole = "trial   2 complete  mae 0.5000  srcc -0.7000  plcc -0.6900  accuracy -0.6800  step 4  10 s"
    said = []
    for console in (terminal(), Console(file=io.StringIO(), width=80)):
        view = View(StudyProgress(plan, 1, []), console, lambda number: [])
        view.show(started(plan, 2))
        view.show(Finished(ended))
        said.append(console.file.getvalue().splitlines())  # type: ignore[attr-defined]
    assert whole in said[1]
    assert max(len(text) for text in said[0]) <= 80
    assert " ".join(said[0]).split() == " ".join(said[1]).split()


def test_resumed_trial_shows_its_earlier_epochs(plan: StudyPlan) -> None:
    done = [line(1, 0.9), line(2, 0.4)]
    view = LiveView(StudyProgress(plan, 1, []), terminal(), lambda number: done)
    view.show(started(plan, 5, resumed=True))
    assert any("epoch 2/8" in text and "srcc 0.4000  best 0.9000" in text for text in shown(view))


@pytest.mark.parametrize(
    ("workers", "lengths", "seconds"),
    [
        (1, [10.0] * 4, 80),  # 8 of 12 trials are left
        (2, [10.0] * 4, 40),
        (8, [10.0] * 11, 10),  # seven workers have nothing to do
        (4, [], None),
    ],
)
def test_time_left_comes_from_the_trials_so_far(
    plan: StudyPlan, workers: int, lengths: list[float], seconds: float | None
) -> None:
    progress = StudyProgress(plan, workers, [result(n, "complete", seconds=length) for n, length in enumerate(lengths)])
    assert progress.seconds_left == seconds


def test_time_left_comes_from_epochs_until_a_trial_ends(plan: StudyPlan) -> None:
    view = view_of(plan, 1, terminal())  # 2 s an epoch, 10 epochs, 12 trials, of which one just began
    assert view.progress.seconds_left == pytest.approx(240, abs=5)


def test_plain_lines_say_the_same_without_a_terminal(plan: StudyPlan) -> None:
    console = Console(file=io.StringIO(), width=80)
    with study_view(StudyProgress(plan, 1, []), console, lambda number: []) as view:
        assert type(view) is View
        for event in (
            started(plan, 0),
            Reported(0, line(9, 0.7, round=1, epoch=1)),
            Retried(0, "the process was ended by SIGKILL"),
            Tick(),
            Finished(result(0, "pruned", 0.7)),
            Stopping("timeout"),
        ):
            view.show(event)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"trial   0 starts    {LONG}",
        "trial   0  round 1  epoch 1/1  srcc 0.7000  best 0.7000",
        "trial   0 resumes: the process was ended by SIGKILL",
        "trial   0 pruned    srcc 0.7000  plcc 0.7100  accuracy 0.7200  step 4  10 s",
        "          1 of 12 trials · 1 pruned · about 1 min 50 s left",
        "          1 of 12 trials · 1 pruned · time is up: stopping after this epoch",
    ]


def test_lines_printed_meanwhile_stay_whole(plan: StudyPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    console = terminal()
    said = "RuntimeWarning: something that a library has to say, at length, " + "and then some more " * 5
    with study_view(StudyProgress(plan, 8, []), console, lambda number: []) as view:
        for number in range(8):
            view.show(started(plan, number))
        print(said, file=sys.stderr)
        view.show(Tick())
    output = console.file.getvalue().replace("\n", "")  # type: ignore[attr-defined]
    assert said.replace(" ", "") in output.replace(" ", "")


def test_trial_without_a_study_prints_epochs_within_80_columns(recipe: TrialConfig) -> None:
    console = Console(file=io.StringIO(), width=80)
    lines = EpochLines(console, recipe.replace({"training.epochs": 20}))
    lines.show(line(1, 0.5))
    lines.show(line(12, 0.25))
    first, second = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == "epoch 1/20  loss 0.2500  srcc 0.5000  plcc 0.5000  accuracy 0.5000  1234/s *"
    assert second.startswith("epoch 12/20  loss 0.2500  srcc 0.2500")
    assert not second.endswith("*")


@pytest.mark.parametrize(
    ("fields", "line", "expected"),
    [
        ({}, {}, "epoch 0/20"),
        ({"self_training.rounds": 1}, {"round": 1, "epoch": 3}, "round 1  epoch 3/5"),
        ({"training.retrain_head_epochs": 4}, {"round": 0, "epoch": 2}, "round 0  epoch 2/20"),
        ({"training.retrain_head_epochs": 4}, {"round": 1, "epoch": 2}, "head  epoch 2/4"),
        ({"training.retrain_head_epochs": 4, "self_training.rounds": 2}, {"round": 3, "epoch": 1}, "head  epoch 1/4"),
    ],
)
def test_epoch_line_shows_its_round_and_head_only_training(
    fields: dict[str, Any], line: dict[str, int], expected: str
) -> None:
    record = EpochRecord(1, line["round"], line["epoch"], 1, {}, 0.0) if line else None
    assert place_of(TrialConfig().replace(fields), record) == expected


def test_a_narrower_terminal_leaves_no_stale_row(plan: StudyPlan) -> None:
    """The wrapped rows of what is on it are erased: as many as the terminal adds."""
    view = view_of(plan, 2, terminal(80))
    shown_before = shown(view)
    console = view.console
    console.file = io.StringIO()
    console.width = 60
    view.show(Tick())
    added = sum((len(text.rstrip()) - 1) // 60 for text in shown_before if text.strip())
    assert added > 0
    assert console.file.getvalue().startswith("\r" + "\x1b[2K\x1b[1A" * added)


def test_a_view_that_fails_does_not_end_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def show(item: int) -> None:
        calls.append(item)
        raise ValueError("no such style")

    safe = unfailing(show)
    for item in range(3):
        safe(item)
    assert calls == [0]
    assert "ValueError: no such style" in capsys.readouterr().err


def test_view_counts_ended_trials_and_drops_them(plan: StudyPlan) -> None:
    """Work per event may not grow with the study: no list of results is there to go through."""
    progress = StudyProgress(plan, 1)
    for number in range(200):
        progress.update(started(plan, number), lambda number: [])
        progress.update(Finished(result(number, "complete", number / 1000)), lambda number: [])
    assert (progress.used_budget, progress.best and progress.best.trial) == (200, 199)
    assert not [value for value in vars(progress).values() if isinstance(value, list | dict) and len(value) > 100]
