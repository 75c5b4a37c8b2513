"""What a trial reports to NNI over a socket: numbers only, each epoch once, nothing lost when node is down."""

import json
import math
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sample_records import epoch_record

from elta_tune.records import TrialFolder
from elta_tune.studies.nni import rest as nni_channel
from elta_tune.studies.nni.rest import NodeGone, TrialChannel
from elta_tune.studies.nni.trial import NniReporter, finite
from elta_tune.trial import TrialStopped


class Node(BaseHTTPRequestHandler):
    """Takes what a trial sends as node does; it has heard of the second epoch before."""

    heard: list = []  # noqa: RUF012 - one server per test
    failing = 0
    """So many requests get no answer."""

    def do_GET(self):
        known = [{"sequence": 1}] if self.path.startswith("/secret/api/v1/nni/metric-data/abc") else []
        self._answer(json.dumps(known).encode())

    def do_PUT(self):
        if Node.failing:
            Node.failing -= 1
            self.connection.close()
            return
        self.heard.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self._answer(b"")

    def _answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def node():
    Node.heard, Node.failing = [], 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def channel(node, monkeypatch):
    monkeypatch.setattr(nni_channel, "PAUSE", 0.01)
    url = f"http://localhost:{node.server_port}/secret/env/local-env/abc"
    return TrialChannel.open(url, "abc", 3, lambda: node.fileno() != -1)


@pytest.fixture
def reporter(channel, tmp_path):
    """`reporter(last=3)`: one whose trial's folder is empty."""

    def reporter(objective="srcc", last=5):
        return NniReporter(channel, TrialFolder(tmp_path), 7, objective, last)

    return reporter


def report(reporter, tmp_path, *lines):
    """Records epochs and reports each, as a trial does."""
    for line in lines:
        TrialFolder(tmp_path).append(record := epoch_record(**line))
        reporter.report(record)


def received_metrics():
    """The metrics that node has heard of."""
    return [json.loads(command["metric"]) for _, command in Node.heard]


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


LINE = {"step": 1, "round": 0, "srcc": 0.5, "plcc": 0.4, "accuracy": 0.75, "mae": 0.3, "loss": 1.5, "elapsed": 2.0}


def test_an_epoch_is_reported_once_with_its_objective_as_default(reporter, tmp_path):
    report(reporter("plcc"), tmp_path, *({**LINE, "step": step} for step in (1, 1, 2, 3)))
    assert {path for path, _ in Node.heard} == {"/secret/env/local-env/abc"}
    metrics = received_metrics()
    assert [metric["sequence"] for metric in metrics] == [0, 2]  # node knows of the second, from before a restart
    assert {(m["type"], m["parameter_id"], m["trial_job_id"]) for m in metrics} == {("PERIODICAL", 7, "abc")}
    assert list(json.loads(metrics[0]["value"]).items()) == [
        ("default", 0.4),
        ("srcc", 0.5),
        ("plcc", 0.4),
        ("accuracy", 0.75),
        ("mae", 0.3),
    ]


def test_nan_is_not_reported(reporter, tmp_path):
    report(reporter(), tmp_path, {**LINE, "srcc": math.nan}, {**LINE, "step": 3, "srcc": None})
    assert Node.heard == []
    assert finite({**LINE, "plcc": math.nan, "mae": math.inf}, "srcc") == {
        "default": 0.5,
        "srcc": 0.5,
        "accuracy": 0.75,
    }


def test_a_trial_stops_once_its_epoch_is_saved_if_nobody_listens(node, channel, reporter, tmp_path):
    reporter = reporter()
    node.shutdown()
    node.server_close()
    with pytest.raises(TrialStopped):
        report(reporter, tmp_path, LINE)
    with pytest.raises(NodeGone):
        reporter.finish(LINE)
    with pytest.raises(NodeGone):
        channel.parameters()


@pytest.mark.parametrize("failing", [1, nni_channel.TRIES - 1, nni_channel.TRIES])
def test_requests_that_fail_while_node_lives_lose_nothing(reporter, tmp_path, failing):
    reporter = reporter()
    Node.failing = failing
    report(reporter, tmp_path, LINE)
    assert len(received_metrics()) == (0 if failing == nni_channel.TRIES else 1)
    report(reporter, tmp_path, {**LINE, "step": 3, "srcc": 0.6})
    Node.failing = failing
    reporter.finish({**LINE, "srcc": 0.6})  # a result that NNI does not take does not undo the trial
    sent = [(m["type"], m["sequence"], json.loads(m["value"])["default"]) for m in received_metrics()]
    final = [] if failing == nni_channel.TRIES else [("FINAL", 0, 0.6)]
    assert sent == [("PERIODICAL", 0, 0.5), ("PERIODICAL", 2, 0.6), *final]


def test_nothing_prunes_after_the_last_epoch(reporter, tmp_path):
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    reporter = reporter(last=3)
    report(reporter, tmp_path, LINE)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    report(reporter, tmp_path, {**LINE, "step": 3})
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
