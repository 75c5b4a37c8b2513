"""HTTP requests to NNI's node, on this machine and never through a proxy.

Trials use this instead of `nni`, whose import takes seconds in each of them.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from elta_tune.files import parse_json
from elta_tune.records.reader import Count, read_record

T = TypeVar("T")
HOST = "127.0.0.1"
TIMEOUT = 20.0
"""Seconds for node to answer."""
TRIAL_TIMEOUT = 300.0
"""The same for a trial, which has more to lose: a node that ended refuses at once, a slow one is busy."""
TRIES, PAUSE = 4, 1.0
"""Attempts of a trial at a request while node runs, and the seconds between them."""


class NodeGone(Exception):
    """Node does not answer, or is ending."""


@dataclass(frozen=True)
class Answer:
    """Status and body of a response."""

    status: int
    body: bytes


def request(
    port: int,
    method: str,
    path: str,
    content: Any = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Answer:
    """One request; `content` is sent as JSON.

    Raises:
        NodeGone: node does not listen, or the connection broke.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=timeout)
    body = None if content is None else json.dumps(content)
    kind = {} if content is None else {"Content-Type": "application/json"}
    try:
        connection.request(method, path, body, {**kind, **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except (OSError, http.client.HTTPException) as error:
        raise NodeGone(f"NNI does not answer on port {port}: {error}") from error
    finally:
        connection.close()


@dataclass(frozen=True)
class Proposal:
    """Parameters that NNI's tuner proposed, in its JSON, and their number."""

    parameter_id: Count
    parameters: dict[str, Any]

    @classmethod
    def read(cls, text: str, place: str) -> Proposal:
        """The proposal in a JSON text.

        Raises:
            DamagedError: it is none; `place` says where.
        """
        return read_record(cls, parse_json(text.encode(), place), place)


@dataclass(frozen=True)
class Rest:
    """NNI's REST interface behind its secret prefix."""

    port: int
    prefix: str
    timeout: float = TIMEOUT

    @property
    def url(self) -> str:
        """The address of the web UI."""
        return f"http://{HOST}:{self.port}/{self.prefix}/"

    def get(self, what: str) -> Any:
        """The JSON that NNI answers.

        Raises:
            NodeGone: node does not listen, or refuses.
        """
        return self._call("GET", what)

    def post(self, what: str, content: Any) -> Any:
        """Sends JSON; see `get`."""
        return self._call("POST", what, content)

    def put(self, what: str, content: Any) -> Any:
        """Sends JSON; see `get`."""
        return self._call("PUT", what, content)

    def _call(self, method: str, what: str, content: Any = None) -> Any:
        answer = request(self.port, method, f"/{self.prefix}/api/v1/nni/{what}", content, timeout=self.timeout)
        if answer.status != 200:
            raise NodeGone(f"NNI refused {method} {what}: {answer.status} {answer.body[:500]!r}")
        try:
            return json.loads(answer.body) if answer.body else None
        except ValueError as error:
            raise NodeGone(f"NNI answered {method} {what} with no JSON: {answer.body[:500]!r}") from error


@dataclass(frozen=True)
class TrialChannel:
    """A trial's connection to node (`NNI_TRIAL_COMMAND_CHANNEL`). It repeats requests that fail while node runs."""

    port: int
    path: str
    trial: str
    number: int
    node_lives: Callable[[], bool]

    @classmethod
    def open(cls, url: str, trial: str, number: int, node_lives: Callable[[], bool]) -> TrialChannel:
        """The channel behind a URL such as ``http://localhost:8080/PREFIX/env/local-env/TRIAL``.

        Args:
            trial, number: the trial's id in NNI, and its number in the study.
        """
        parts = urlsplit(url)
        return cls(parts.port or 80, parts.path, trial, number, node_lives)

    @property
    def rest(self) -> Rest:
        """The REST interface of the same node."""
        return Rest(self.port, self.path.split("/")[1], TRIAL_TIMEOUT)

    def parameters(self) -> Proposal:
        """Requests the trial's parameters.

        Raises:
            NodeGone: node ends.
        """
        return self._patiently(self._parameters)

    def _parameters(self) -> Proposal:
        self._put({"type": "request_parameter"})
        while (answer := self._ask("GET")).status == 408:  # node answers so each second until it has them
            pass
        if answer.status != 200:
            raise NodeGone(f"NNI gave no parameters: {answer.status}")
        return Proposal.read(json.loads(answer.body)["parameter"], "NNI's answer")

    def recorded_parameters(self, seconds: float = 60.0) -> Proposal:
        """The parameters of this trial in NNI's database.

        Raises:
            NodeGone: node ends, or did not record the trial within `seconds`.
        """
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self._get(f"trial-jobs/{self.trial}")
            if job is not None and job.get("hyperParameters"):
                return Proposal.read(job["hyperParameters"][0], f"NNI's trial {self.trial}")
            time.sleep(0.1)  # NNI records a trial a moment after it has started it
        raise NodeGone(f"NNI's database has no parameters of trial {self.trial}")

    def reported(self) -> set[int]:
        """Sequence numbers of the intermediate metrics of this trial that NNI has."""
        metrics = self._get(f"metric-data/{self.trial}?type=PERIODICAL")
        return {metric["sequence"] for metric in metrics}

    def report(self, kind: str, parameter_id: int | None, sequence: int, values: Mapping[str, float]) -> None:
        """Reports metrics; tuner and assessor use `default`.

        Args:
            kind: PERIODICAL or FINAL.

        Raises:
            NodeGone: node ends.
        """
        metric = {
            "parameter_id": parameter_id,
            "trial_job_id": self.trial,
            "number": self.number,
            "type": kind,
            "sequence": sequence,
            "value": json.dumps(values),
        }
        self._patiently(lambda: self._put({"type": "metric", "metric": json.dumps(metric)}))

    def _get(self, what: str) -> Any:
        return self._patiently(lambda: self.rest.get(what))

    def _patiently(self, ask: Callable[[], T]) -> T:
        for _ in range(TRIES - 1):
            with suppress(NodeGone):
                return ask()
            if not self.node_lives():
                break
            time.sleep(PAUSE)
        return ask()

    def _ask(self, method: str, command: Any = None) -> Answer:
        return request(self.port, method, self.path, command, timeout=TRIAL_TIMEOUT)

    def _put(self, command: Mapping[str, str]) -> None:
        answer = self._ask("PUT", command)
        if answer.status != 200:
            raise NodeGone(f"NNI accepts nothing more from trial {self.trial}: {answer.status}")
