"""A fault in a study under NNI ends it with the cause named, or loses nothing."""

import pytest

# In each study's processes: what goes wrong there.
HOOKS = """
import os, signal, sys, time
from pathlib import Path

root, study = Path("{root}"), Path(os.environ.get("ELTA_TUNE_NNI_STUDY", "")).name
number = os.environ.get("NNI_TRIAL_SEQ_ID")
is_tuner = number is None and os.environ.get("SDK_PROCESS") == "dispatcher"

if is_tuner and study == "cut" and not (root / "repaired").exists():
    if (root / "again").exists():
        print("ImportError: no module named that", file=sys.stderr, flush=True)
        os._exit(3)
    from elta_tune.studies.nni import tuner as nni_tuner
    def make_tuner(**options):
        raise ValueError("no such tuner")
    nni_tuner.make_tuner = make_tuner
if number is not None and study == "burning":
    os.kill(os.getpid(), signal.SIGKILL) if int(number) % 2 else os._exit(3)
if number is not None and study == "full" and not (root / "freed").exists():
    from elta_tune.records import TrialFolder
    append = TrialFolder.append
    def fails(self, record):
        if record.step == 3:
            raise OSError(28, "No space left on device", str(self.metrics_file))
        append(self, record)
    TrialFolder.append = fails
if number is not None and study == "cut":
    from dataclasses import replace
    from elta_tune.records import TrialFolder
    from elta_tune.studies.nni import rest as nni_channel
    append, request, failures, naps = TrialFolder.append, nni_channel.request, ["any"] * 5, [60]
    def waits(self, record):
        if number == "1" and record.step == 8 and naps:
            time.sleep(naps.pop())  # the verdict on the seventh is on its way
        append(self, replace(record, values={{**record.values, "srcc": 0.0}}) if number == "1" else record)
        while record.step == 2 and not (root / f"gate-{{number}}").exists():
            time.sleep(0.05)
    def fails(port, method, path, content=None, *arguments, **options):
        if failures and number == "0" and '"sequence": 9' in str(content):
            failures.pop()
            port = 1
        return request(port, method, path, content, *arguments, **options)
    TrialFolder.append, nni_channel.request, nni_channel.PAUSE = waits, fails, 0.1
"""
LR = {"optim.lr": {"type": "float", "low": "0.1x", "high": "10x", "log": True}}
TWO = {"optim.lr": {"type": "categorical", "choices": [3e-3, 6e-3]}}
EPOCHS = 12


@pytest.fixture(scope="module")
def studies(nni_studies):
    (nni_studies.root / "hooks" / "sitecustomize.py").write_text(HOOKS.format(root=nni_studies.root))
    nni_studies.space("lr", parameters=LR)
    median = {"name": "median", "startup_trials": 1, "warmup": 0.5}
    nni_studies.space("cut", parameters=LR, pruner=median, enqueue=[{"optim.lr": 6e-3}])
    nni_studies.space("two", parameters=TWO, sampler={"name": "random"})
    return nni_studies


def arguments(name, space="lr", trials=4, workers=1):
    numbers = ("--trials", str(trials), "--workers", str(workers), "--set", f"training.epochs={EPOCHS}")
    return ("run", "--space", f"{space}.yaml", "--recipe", "tiny.yaml", "--backend", "nni", "--name", name, *numbers)


CUT = arguments("cut", space="cut", trials=2)


@pytest.fixture(scope="module", autouse=True)
def begun(studies):
    """Studies that end by themselves, while the other one is looked at."""
    return {
        "burning": studies.start(*arguments("burning", workers=4)),
        "used-up": studies.start(*arguments("used-up", space="two")),
        "full": studies.start(*arguments("full", trials=1)),
    }


@pytest.fixture(scope="module")
def without_a_trial(studies):
    """What the command says of a study whose tuner dies before it has connected, in two ways."""
    ends = [studies.run(*CUT)]
    (studies.root / "again").touch()
    ends.append(studies.run(*CUT))
    (studies.root / "repaired").touch()
    return ends


def test_a_tuner_that_never_connects_ends_the_study(without_a_trial):
    for (code, said), cause in zip(
        without_a_trial, ("ValueError: no such tuner", "ImportError: no module named that"), strict=True
    ):
        assert (code, f"elta-tune: NNI's tuner died: {cause}\n" in said) == (2, True), said


def test_kills_and_a_lost_request_cost_no_epoch(studies, without_a_trial):
    def killed(kind, number):
        """Kills a process of the study at the second epoch of a trial; returns the epochs."""
        command = studies.start(*CUT)
        studies.wait_for(lambda: len(studies.epochs("cut", number)) == 2, command)
        studies.kill(kind, "cut")
        assert command.wait(240) == 2, studies.said(command)
        (studies.root / f"gate-{number}").touch()
        return studies.epochs("cut", number)

    kept = [killed("node", 0), killed("tuner", 1)]
    code, said = studies.run(*CUT)
    assert code == 0, said

    results = studies.results("cut")
    assert [result["state"] for result in results.values()] == ["complete", "pruned"]
    # Trial 0 is the recipe, though starts came before it; trial 1 was begun by one start, and stopped by the next.
    assert [result["params"]["optim.lr"] for result in results.values()] == [3e-3, 6e-3]
    began = "select distinct sequenceId, trialJobId from TrialJobEvent where event = 'RUNNING' order by 1"
    trials = studies.query("cut", began)
    assert trials == [(number, result["nni_trial_id"]) for number, result in results.items()]
    for (number, trial), epochs in zip(trials, (EPOCHS, 7), strict=True):
        lines = studies.epochs("cut", number)
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
        assert len(lines) in (epochs, epochs + number)  # trial 1 trains while its verdict is on its way
        assert lines[:2] == kept[number]  # nothing was trained again
        sql = f"select sequence from MetricData where type = 'PERIODICAL' and trialJobId = '{trial}' order by sequence"
        assert studies.query("cut", sql) == [(step,) for step in range(epochs)]  # each epoch was reported to NNI once
    assert "not reported: NNI does not answer" in studies.root.joinpath("runs/cut/trials/0000/log.txt").read_text()
    assert studies.processes(study="cut") == []


def test_a_study_ends_when_its_trials_fail_for_whatever_reasons(studies, begun):
    command = begun["burning"]
    assert command.wait(240) == 2, studies.said(command)
    assert "elta-tune: 10 trials in a row failed: the process " in studies.said(command)
    assert len(studies.results("burning")) in range(10, 14)  # some were under way
    assert studies.processes(study="burning") == []


def test_a_full_disk_ends_the_study_and_costs_no_trial(studies, begun):
    command = begun["full"]
    assert command.wait(240) == 2, studies.said(command)
    assert "elta-tune: trial 0 can't continue: [Errno 28] No space left on device" in studies.said(command)
    assert studies.results("full") == {} and studies.processes(study="full") == []
    kept = studies.epochs("full")
    assert [line["step"] for line in kept] == [1, 2]
    (studies.root / "freed").touch()
    code, said = studies.run(*arguments("full", trials=1))
    assert (code, "trial   0 goes on" in said) == (0, True), said
    assert studies.epochs("full")[:2] == kept and len(studies.epochs("full")) == EPOCHS
    assert [result["state"] for result in studies.results("full").values()] == ["complete"]


def test_study_with_an_exhausted_space_is_finished(studies, begun):
    command = begun["used-up"]
    assert command.wait(240) == 0, studies.said(command)
    assert "all 2 points of the space were tried" in studies.said(command)
    code, said = studies.run(*arguments("used-up", space="two"))
    assert (code, "study used-up is finished: 2 of 2 trials" in said, "http://" in said) == (0, True, False), said
    assert '"state": "finished"' in studies.run("list", "--json")[1].partition('"study": "used-up"')[2]
    assert studies.processes(study="used-up") == []
