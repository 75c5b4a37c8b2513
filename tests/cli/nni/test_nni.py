"""A whole study under NNI: forced to mix its trials up, looked at in a browser, finished, exported, opened again."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import time
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from elta_tune.config import load_recipe
from elta_tune.records import StudyFolder
from elta_tune.studies.nni.space import decode
from elta_tune.studies.plan import read_plan

# Trial 0 asks for its parameters after trial 1, trial 2 dies before it asks, trial 3 leaves time to be stopped early
# after its first epoch, trial 4 waits until the test has looked around.
HOOKS = """
if number == "2":
    os._exit(3)
from elta_tune.studies.nni import rest as nni_channel
from elta_tune.studies.nni import trial as nni_trial
ask, report = nni_channel.TrialChannel.parameters, nni_trial.NniReporter.report
def asks(self):
    gate = Path("{root}") / {{"0": "asked-1", "4": "looked"}}.get(number, "")
    while not gate.exists():
        time.sleep(0.05)
    received = ask(self)
    (Path("{root}") / f"asked-{{number}}").touch()
    return received
def reports(self, record):
    report(self, record)
    time.sleep(30 if number == "3" else 0)
nni_channel.TrialChannel.parameters, nni_trial.NniReporter.report = asks, reports
"""
SPACE = {
    "budget": {"trials": 4},
    "pruner": {"name": "median", "startup_trials": 1, "warmup": 0},
    "parameters": {
        "optim.lr": {"type": "float", "low": "0.01x", "high": "10x", "log": True},
        "mixup.alpha": {"type": "categorical", "choices": [0.5, None]},
        "self_training.rounds": {"type": "int", "low": 0, "high": 1},
        "sharpening.temperature": {"type": "float", "low": 0.5, "high": 6, "when": "self_training.rounds > 0"},
    },
    "enqueue": [
        {"self_training.rounds": 1, "sharpening.temperature": 4},
        {"mixup.alpha": 0.5},
        {"optim.lr": 3e-5},
    ],
}
NAME = "mixed"
STATES = ["SUCCEEDED", "SUCCEEDED", "FAILED", "EARLY_STOPPED", "RUNNING"]


@pytest.fixture(scope="module")
def running(nni_studies):
    """The study while its last trial waits: the address of its web UI."""
    nni_studies.hooks(HOOKS.format(root=nni_studies.root))
    nni_studies.space("mixed", **SPACE)
    plant_modules(nni_studies.root)
    arguments = ("run", "--space", "mixed.yaml", "--recipe", "tiny.yaml", "--backend", "nni", "--workers", "2")
    command = nni_studies.start(*arguments, "--name", NAME)
    url, _ = nni_studies.address(command)

    def only_the_last_one_runs():
        states = [trial["status"] for trial in json.loads(get(url, "trial-jobs")[1])]
        is_last = json.loads(get(url, "check-status")[1])["status"] == "NO_MORE_TRIAL"
        return len(nni_studies.results(NAME)) >= 4 and sorted(states) == sorted(STATES) and is_last

    nni_studies.wait_for(only_the_last_one_runs, command)
    return command, url


PLANTED = ("torch", "json", "timm", "queue", "nni", "sitecustomize", "fastnumbers")


def plant_modules(root):
    """Puts modules that say that they were executed where a child's import may find them."""
    study = root / "runs" / NAME
    for folder in (root, study, study / "nni", study / "nni" / "work", study / "nni" / "experiment" / "log"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in PLANTED:
            (folder / f"{name}.py").write_text(f"open({str(root / 'executed')!r}, 'a').write(__file__ + '\\n')")


@pytest.fixture(scope="module")
def finished(nni_studies, running):
    """What the command said, once the study is finished."""
    command, _ = running
    (nni_studies.root / "looked").touch()
    assert command.wait(240) == 0, nni_studies.said(command)
    return nni_studies.said(command)


def get(url, path):
    """JSON of NNI's REST interface."""
    _, host, prefix, _ = re.split(r"//|/", url, maxsplit=3)
    connection = http.client.HTTPConnection(host, timeout=20)
    with closing(connection):
        connection.request("GET", f"/{prefix}/api/v1/nni/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture(scope="module")
def seen():
    """Hosts that pages asked, and whether they answered."""
    return {}


def host_of(url):
    return url.split("/")[2]


@pytest.fixture(scope="module")
def page(running, seen):
    """NNI's web UI of the running study in headless Chromium."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    flags = ["no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run", "disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=[f"--{flag}" for flag in [*flags, "disable-sync"]]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: seen.setdefault(host_of(request.url), 0))
        page.on("response", lambda response: seen.update({host_of(response.url): 1}))
        yield page
        browser.close()


def rows_of(page):
    """The table of trials: for each row its cells by column."""
    page.wait_for_selector(".ms-DetailsRow")
    rows = page.locator(".ms-DetailsRow").all()
    cells = [row.locator("[data-automation-key]").all() for row in rows]
    return [
        {cell.get_attribute("data-automation-key"): cell.inner_text().partition("\n")[0] for cell in row}
        for row in cells
    ]


def looked_at(page, name):
    """Takes a screenshot for people to look at, if they say where to, and returns its pixels."""
    if folder := os.environ.get("ELTA_TUNE_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)
    return Image.open(io.BytesIO(page.screenshot())).convert("HSV")


def test_the_overview_shows_the_study_that_runs(page, running, nni_studies):
    page.goto(running[1])
    page.wait_for_selector("text=Best metric")
    best = max(result["value"] for result in nni_studies.results(NAME).values() if result["state"] == "complete")
    text = page.locator("body").inner_text()
    assert f"{best:.6f}" in text and NAME in text.split() and "NO_MORE_TRIAL" in text
    looked_at(page, "overview")


def test_the_table_of_trials_shows_their_states_and_metrics(page, running, nni_studies):
    page.goto(running[1] + "detail")
    page.wait_for_selector("text=accuracy (metric)")
    heads = [head.inner_text().strip() for head in page.locator("[role=columnheader]").all()]
    assert [head for head in heads if "metric" in head] == [
        "Default metric", "srcc (metric)", "plcc (metric)", "accuracy (metric)"
    ]  # fmt: skip
    rows, results = rows_of(page), nni_studies.results(NAME)
    assert [(row["sequenceId"], row["status"]) for row in rows] == list(zip("01234", STATES, strict=True))
    for number in (0, 1):
        assert rows[number]["id"] == results[number]["nni_trial_id"]
        for name in ("srcc", "plcc", "accuracy"):
            assert float(rows[number][f"metric/{name}"]) == pytest.approx(results[number]["metrics"][name], abs=1e-12)
    looked_at(page, "table")


def test_the_hyper_parameters_are_drawn_as_parallel_axes(page, running):
    page.goto(running[1] + "detail")
    page.get_by_text("Hyper-parameter", exact=True).click()
    page.wait_for_selector("svg .label")
    labels = [label.text_content() for label in page.locator("svg .label").all()]
    assert {"optim.lr", "mixup.alpha", "self_training.rounds", "default", "srcc", "plcc", "accuracy"} <= set(labels)
    assert_drawn(page, "hyper-parameters", top=200, bottom=540)


def test_the_epochs_are_drawn_as_curves(page, running, nni_studies):
    page.goto(running[1] + "detail")
    page.get_by_text("Intermediate result", exact=True).click()
    page.wait_for_selector("canvas")
    assert_drawn(page, "curves", top=200, bottom=500)
    values = nni_studies.query(NAME, "select trialJobId, sequence, data from MetricData where type = 'PERIODICAL'")
    for number, result in nni_studies.results(NAME).items():
        curve = [json.loads(json.loads(data)) for trial, _, data in values if trial == result.get("nni_trial_id")]
        lines = nni_studies.epochs(NAME, number)
        assert [metrics["default"] for metrics in curve] == [line["srcc"] for line in lines]
        assert [metrics["accuracy"] for metrics in curve] == [line["accuracy"] for line in lines]


def assert_drawn(page, name, top, bottom):
    """Waits until a band of the page has pixels that are neither grey nor pale: curves grow."""
    until = time.monotonic() + 60
    while True:
        pixels = np.asarray(looked_at(page, name))[top:bottom, 80:]
        coloured = int(((pixels[..., 1] > 90) & (pixels[..., 2] > 90)).sum())
        if coloured > 500:
            return
        assert time.monotonic() < until, f"{coloured} coloured pixels"
        page.wait_for_timeout(250)


PLACES = ("", "detail", "experiment")
UNDRAWN = """[...document.querySelectorAll('[data-icon-name]')].filter(icon => {
    const glyph = getComputedStyle(icon, '::before');
    return glyph.fontFamily !== 'codicon' || glyph.content === 'none' || glyph.fontSize === '0px';
}).map(icon => icon.dataset.iconName)"""
CUT = """[...document.querySelectorAll('.overviewWrapper *, .nav-main *')].filter(element =>
    getComputedStyle(element).overflowX === 'hidden' && !element.classList.contains('ellipsis')
    && element.scrollWidth > element.clientWidth + 1).map(element => element.className)"""


@pytest.mark.parametrize("place", PLACES)
def test_every_icon_is_drawn_from_the_installation(page, running, place):
    page.goto(running[1] + place)
    page.wait_for_selector("[data-icon-name=Copy]")
    assert page.evaluate(UNDRAWN) == []
    assert page.evaluate("document.fonts.check('16px codicon')")


@pytest.mark.parametrize("width", [1280, 1920])
def test_nothing_of_the_overview_is_cut(page, running, width):
    size = page.viewport_size
    page.set_viewport_size({"width": width, "height": 800})
    try:
        page.goto(running[1])
        page.wait_for_selector("text=Best metric")
        page.wait_for_selector(".bestTable .ms-DetailsRow")
        looked_at(page, f"overview-{width}")
        assert page.evaluate(CUT) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        page.set_viewport_size(size)


def test_the_pages_got_nothing_from_any_other_host(page, running, seen):
    assert {host for host in seen if seen[host]} == {running[1].split("/")[2]}
    assert len(seen) > 1  # they do ask a content network for fonts


def test_the_log_of_a_trial_can_be_read_and_no_other_file(running, nni_studies):
    url, trial = running[1], nni_studies.results(NAME)[0]["nni_trial_id"]
    log = (nni_studies.root / "runs" / NAME / "trials" / "0000" / "log.txt").read_text()
    assert get(url, f"trial-file/{trial}/trial.log") == (200, log) and f"NNI's trial {trial}" in log
    for path in (f"trial-file/{trial}/..%2F..%2Flog%2Fnnimanager.log", f"trial-file/{trial}/.nni%2Fmetrics"):
        assert get(url, path)[0] == 403


def test_failed_trials_use_no_budget(finished, nni_studies):
    results = nni_studies.results(NAME)
    states = [result["state"] for result in results.values()]
    assert states[:4] == ["complete", "complete", "failed", "pruned"] and len(states) == 5
    assert sum(state != "failed" for state in states) == 4
    assert results[2]["reason"] == "the process ended with exit code 3"
    for line in (
        "study mixed starts: 0 of 4 trials done",
        "trial   0 starts    lr=0.003",
        "trial   1  round 0  epoch 1/3  srcc",
        "trial   2 failed    the process ended with exit code 3",
        "trial   3 pruned    srcc",
        "4 of 4 trials",
        "best: trial ",
        "web UI: elta-tune ui mixed",
    ):
        assert line in finished, finished
    first = [results[number]["params"] for number in range(4)]
    own = {"optim.lr": 3e-3, "mixup.alpha": None, "self_training.rounds": 0}
    guess = {**own, "self_training.rounds": 1, "sharpening.temperature": 4.0}
    assert first == [own, guess, {**own, "mixup.alpha": 0.5}, {**own, "optim.lr": 3e-5}]


def test_no_parameters_were_swapped(finished, nni_studies):
    folder = StudyFolder(nni_studies.root / "runs" / NAME)
    plan = read_plan(folder)
    recorded = {
        trial: json.loads(data)
        for trial, data in nni_studies.query(NAME, "select trialJobId, data from TrialJobEvent where data like '{%'")
    }
    used = dict(nni_studies.query(NAME, "select trialJobId, parameterId from MetricData group by trialJobId"))
    asked = re.findall(r"Trial parameter: (\w+)", (folder.path / "nni/experiment/log/nnimanager.log").read_text())
    results = list(nni_studies.results(NAME).values())
    by_number = [result["nni_trial_id"] for result in results]
    assert asked[:2] == by_number[1::-1]  # the second trial asked first
    assert by_number[2] not in asked  # the third died before it asked
    for result in results:
        record = recorded[result["nni_trial_id"]]
        config = load_recipe(folder.trial(result["trial"]).config_file)
        assert decode(plan.space, plan.recipe, record["parameters"]) == result["params"]
        assert {name: config.get(name) for name in result["params"]} == result["params"]
        assert used.get(result["nni_trial_id"], str(record["parameter_id"])) == str(record["parameter_id"])


def test_no_module_of_the_users_or_the_studys_folder_ran(finished, nni_studies):
    assert not (nni_studies.root / "executed").exists(), (nni_studies.root / "executed").read_text()
    assert (nni_studies.root / "torch.py").exists()


def test_nothing_is_left_of_a_study_that_ended(finished, running, nni_studies):
    nni_studies.assert_nothing_left(int(re.search(r":(\d+)/", running[1])[1]))
    assert dict(nni_studies.query(NAME, "select event, count(distinct trialJobId) from TrialJobEvent group by event"))[
        "EARLY_STOPPED"
    ] in (1, 2)  # the last trial may have been stopped, too


def test_commands_work_whichever_back_end_ran(finished, nni_studies):
    code, said = nni_studies.run("best", NAME, "--export", "ckpt", "--json")
    assert code == 0, said
    best = json.loads(said)
    results = nni_studies.results(NAME)
    value = max(result["value"] for result in results.values() if result["state"] == "complete")
    assert best["value"] == value and (nni_studies.root / "best.ckpt").exists() and best["difference"] <= 1e-5
    (row,) = json.loads(nni_studies.run("list", "--json")[1])
    assert (row["state"], row["ended"], row["failed"], row["value"]) == ("finished", 4, 1, value)
    shown = json.loads(nni_studies.run("show", NAME, "3", "--json")[1])
    assert shown["result"]["nni_trial_id"] == results[3]["nni_trial_id"]


def test_a_study_continues_only_under_its_own_back_end(finished, nni_studies):
    arguments = ("run", "--space", "mixed.yaml", "--recipe", "tiny.yaml", "--name", NAME)
    code, said = nni_studies.run(*arguments, "--backend", "optuna")
    assert code == 2 and "study mixed runs under nni, and can't continue under optuna" in said
    code, said = nni_studies.run(*arguments)
    assert code == 0 and "study mixed is finished: 4 of 4 trials" in said


def test_the_web_ui_of_a_finished_study_opens_and_closes(finished, nni_studies):
    command = nni_studies.start("ui", NAME)
    url, port = nni_studies.address(command)
    status, jobs = get(url, "trial-jobs")
    assert status == 200 and len(json.loads(jobs)) == 5
    assert json.loads(get(url, "check-status")[1])["status"] == "VIEWED"
    assert get(url, "trial-file/x/..%2F..%2Fdb%2Fnni.sqlite")[0] == 403
    command.send_signal(signal.SIGINT)
    assert command.wait(240) == 0 and nni_studies.said(command).endswith("closed\n")
    nni_studies.assert_nothing_left(port)
