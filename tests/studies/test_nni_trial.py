"""What a trial tells NNI, over a socket: numbers only, each epoch once, and nothing is lost when nobody listens."""

import json
import math
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from elta_tune.studies.nni_channel import NodeGone, TrialChannel
from elta_tune.studies.nni_trial import NniReporter, finite
from elta_tune.trial import TrialStopped


class Node(BaseHTTPRequestHandler):
    """Takes what a trial sends as node does; it has heard of the second epoch before."""

    heard: list = []  # noqa: RUF012 - one server per test

    def do_GET(self):
        known = [{"sequence": 1}] if self.path.startswith("/secret/api/v1/nni/metric-data/abc") else []
        self._answer(json.dumps(known).encode())

    def do_PUT(self):
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
    Node.heard = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Node) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def channel(node):
    return TrialChannel.open(f"http://localhost:{node.server_port}/secret/env/local-env/abc", "abc")


@pytest.fixture(autouse=True)
def _signals():
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


LINE = {"step": 1, "round": 0, "srcc": 0.5, "plcc": 0.4, "accuracy": 0.75, "mae": 0.3, "loss": 1.5, "elapsed": 2.0}


def test_an_epoch_is_told_once_with_the_objective_as_default(channel):
    reporter = NniReporter(channel, 7, "plcc", last=5)
    for step in (1, 1, 2, 3):
        reporter.report(step, {**LINE, "step": step})
    assert {path for path, _ in Node.heard} == {"/secret/env/local-env/abc"}
    metrics = [json.loads(command["metric"]) for _, command in Node.heard]
    assert [metric["sequence"] for metric in metrics] == [0, 2]  # node knows of the second, from before a restart
    assert {(m["type"], m["parameter_id"], m["trial_job_id"]) for m in metrics} == {("PERIODICAL", 7, "abc")}
    assert list(json.loads(metrics[0]["value"]).items()) == [
        ("default", 0.4),
        ("srcc", 0.5),
        ("plcc", 0.4),
        ("accuracy", 0.75),
        ("mae", 0.3),
    ]


def test_what_is_not_a_number_is_not_told(channel):
    reporter = NniReporter(channel, 0, "srcc", last=5)
    reporter.report(1, {**LINE, "srcc": math.nan})
    reporter.report(3, {**LINE, "srcc": None})
    assert Node.heard == []
    assert finite({**LINE, "plcc": math.nan, "mae": math.inf}, "srcc") == {
        "default": 0.5,
        "srcc": 0.5,
        "accuracy": 0.75,
    }


def test_a_trial_stops_once_its_epoch_is_saved_if_nobody_listens(node, channel):
    reporter = NniReporter(channel, 0, "srcc", last=5)
    node.shutdown()
    node.server_close()
    with pytest.raises(TrialStopped):
        reporter.report(1, LINE)
    with pytest.raises(NodeGone):
        channel.parameters()


def test_nothing_prunes_after_the_last_epoch(channel):
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    reporter = NniReporter(channel, 0, "srcc", last=3)
    reporter.report(1, LINE)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    reporter.report(3, {**LINE, "step": 3})
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
