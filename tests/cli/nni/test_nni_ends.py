"""However a study under NNI ends, no process is left, and the next start resumes from the last epoch."""

import signal

import pytest

GATE = """
from elta_tune.records import TrialFolder
append = TrialFolder.append
def wait(self, record):
    append(self, record)
    while Path("{root}/waits").exists():
        time.sleep(0.05)
TrialFolder.append = wait
"""
EPOCHS = 12
LR = {"optim.lr": {"type": "float", "low": "0.1x", "high": "10x", "log": True}}


@pytest.fixture(scope="module")
def studies(nni_studies):
    nni_studies.hooks(GATE.format(root=nni_studies.root))
    nni_studies.space("lr", parameters=LR, pruner={"name": "none"})
    return nni_studies


RUN = ("run", "--space", "lr.yaml", "--recipe", "tiny.yaml", "--set", f"training.epochs={EPOCHS}")
NEW = ("--backend", "nni", "--trials", "1", "--workers", "1")


def test_a_trial_resumes_under_its_id_whatever_ended_its_study(studies):
    run = (*RUN, "--name", "one")
    (studies.root / "waits").touch()

    # The command is killed; another one attaches, and gets Ctrl-C.
    first = studies.start(*run, *NEW)
    url, port = studies.address(first)
    studies.wait_for(lambda: studies.epochs("one"), first)
    first.kill()
    first.wait()
    assert [len(studies.processes(kind)) for kind in ("node", "tuner", "trial")] == [1, 1, 1]
    attached = studies.start(*run)
    assert studies.address(attached) == (url, port)
    studies.wait_for(lambda: "trial   0 goes on" in studies.said(attached), attached)
    assert '"state": "running"' in studies.run("list", "--json")[1]
    code, said = studies.run(*run)
    assert (code, f"already running (process {attached.pid})" in said) == (2, True), said
    attached.send_signal(signal.SIGINT)
    assert attached.wait(240) == 130, studies.said(attached)
    assert "stopped; to go on:\n  elta-tune run" in studies.said(attached)
    studies.assert_nothing_left(port)

    # The command is killed, and the study stopped from outside.
    second = studies.start(*run)
    _, port = studies.address(second)
    second.kill()
    second.wait()
    assert studies.processes("node")
    by_another_way = f"../{studies.root.name}/runs/one"
    assert studies.run("stop", by_another_way) == (0, "stopping study one\nstudy one is stopped\n")
    studies.assert_nothing_left(port)
    assert studies.run("stop", "one") == (0, "study one is not running\n")

    # Somebody put a module of his into NNI's database.
    planted = {"className": "planted.make_assessor", "codeDirectory": str(studies.root)}
    (studies.root / "planted.py").write_text(f"open({str(studies.root / 'executed')!r}, 'w')")
    studies.change("one", "update ExperimentProfile set params = json_set(params, '$.assessor', json(?))", planted)

    # It ends by itself, with no command attached.
    (studies.root / "waits").unlink()
    before = studies.epochs("one")
    code, said = studies.run(*run, "--detach")
    assert (code, "study one goes on: 0 of 1 trials done" in said) == (0, True), said
    _, port = studies.address(studies.commands[-1])
    studies.wait_for(lambda: not studies.processes())
    studies.assert_nothing_left(port)
    assert "study one is finished: 1 of 1 trials" in studies.run(*run)[1]

    assert not (studies.root / "executed").exists()
    lines = studies.epochs("one")
    assert [line["step"] for line in lines] == list(range(1, EPOCHS + 1))
    assert before and lines[: len(before)] == before  # nothing was trained again
    (result,) = studies.results("one").values()
    assert result["state"] == "complete"
    trials = studies.query("one", "select distinct trialJobId from TrialJobEvent where trialJobId != ''")
    assert trials == [(result["nni_trial_id"],)]
    sequences = studies.query("one", "select sequence from MetricData where type = 'PERIODICAL' order by sequence")
    assert sequences == [(step,) for step in range(EPOCHS)]  # each epoch was reported to NNI once


def test_a_killed_node_or_tuner_ends_its_study_with_a_message(studies):
    messages = {"node": "NNI's node process was ended from outside", "tuner": "NNI's tuner died"}
    (studies.root / "waits").touch()
    commands = {kind: studies.start(*RUN, "--name", kind, *NEW) for kind in messages}
    alone = studies.start(*RUN, "--name", "alone", *NEW)
    ports = {kind: studies.address(command)[1] for kind, command in commands.items()}
    for kind, command in commands.items():
        studies.wait_for(lambda kind=kind: studies.processes("trial", kind), command)
        studies.kill(kind, kind)
    for kind, command in commands.items():
        assert command.wait(240) == 2, studies.said(command)
        assert f"elta-tune: {messages[kind]}" in studies.said(command)
    # Nobody watches, and node is killed: its children end with it.
    studies.wait_for(lambda: studies.processes("trial", "alone") and studies.epochs("alone"), alone)
    alone.kill()
    alone.wait()
    studies.kill("node", "alone")
    studies.wait_for(lambda: not studies.processes(study="alone"))
    (studies.root / "waits").unlink()
    for port in ports.values():
        studies.assert_nothing_left(port)


def test_failures_of_one_cause_or_a_used_up_grid_end_a_study(studies):
    fault = "the process ended with exit code 3"
    studies.hooks("os._exit(3)")
    for sampler, choices in (("random", 8), ("grid", 2)):
        values = {"type": "categorical", "choices": [3e-3 * 2**n for n in range(choices)]}
        studies.space(sampler, sampler={"name": sampler}, parameters={"optim.lr": values})
    arguments = ("run", "--recipe", "tiny.yaml", "--backend", "nni", "--space")
    commands = {sampler: studies.start(*arguments, f"{sampler}.yaml") for sampler in ("random", "grid")}
    ports = [studies.address(command)[1] for command in commands.values()]
    endings = {"random": (2, f"elta-tune: 3 trials in a row failed alike: {fault}"), "grid": (0, "2 trials: 2 failed")}
    for sampler, command in commands.items():
        code, line = endings[sampler]
        assert (command.wait(240), line in studies.said(command)) == (code, True), studies.said(command)
        results = studies.results(f"{sampler}-tiny-nni")
        assert [result["reason"] for result in results.values()] == [fault] * (3 if sampler == "random" else 2)
        assert results[0]["params"] == {"optim.lr": 3e-3} != results[1]["params"]
    for port in ports:
        studies.assert_nothing_left(port)


def test_an_interrupted_start_leaves_nothing_behind(studies):
    """Ctrl-C, then kill -9, in the second between node's start and the experiment's; a viewer whose terminal closes."""
    studies.hooks("")
    run = (*RUN, "--name", "cut", *NEW)
    connection = studies.root / "runs" / "cut" / "nni" / "connection.json"
    first = studies.start(*run)
    studies.wait_for(connection.exists, first)
    first.send_signal(signal.SIGINT)
    assert first.wait(240) == 130, studies.said(first)
    assert studies.processes(study="cut") == []

    connection.unlink()
    second = studies.start(*run)
    studies.wait_for(connection.exists, second)
    second.kill()
    second.wait()
    assert studies.processes("node", "cut")
    code, said = studies.run(*run)
    assert (code, "1 trial: 1 complete" in said) == (0, True), said

    viewer = studies.start("ui", "cut")
    studies.address(viewer)
    assert '"state": "finished"' in studies.run("list", "--json")[1].partition('"study": "cut"')[2]
    viewer.send_signal(signal.SIGHUP)
    assert viewer.wait(240) == 0, studies.said(viewer)
    assert studies.processes(study="cut") == []


def test_refused_start_changes_no_file(studies):
    script = studies.root / "runs" / "mine" / "nni" / "main_nni.py"
    script.parent.mkdir(parents=True)
    script.write_text("mine")
    code, said = studies.run(*RUN, "--name", "mine", "--backend", "nni", "--workers", "two")
    assert (code, "--workers two" in said) == (2, True), said
    assert [path.name for path in (studies.root / "runs" / "mine").rglob("*")] == ["nni", "main_nni.py"]
    code, said = studies.run(*RUN, "--runs", "tiny.yaml", "--backend", "nni")
    assert (code, "can't be written: Not a directory\n  --runs names another place" in said) == (2, True), said
