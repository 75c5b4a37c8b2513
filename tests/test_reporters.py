"""What every Reporter must do. A new one is a line in REPORTERS; those of executors answer in test_executor.py, too."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_records import epoch_record

from elta_tune.api import CallbackReporter
from elta_tune.records import TrialFolder
from elta_tune.studies.nni.rest import NodeGone
from elta_tune.studies.nni.trial import NniReporter
from elta_tune.trial import NoReporter, Reporter, TrialStopped

LAST = 3


class Channel:
    """NNI's node, which accepts everything until it is gone."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.is_gone = False

    def reported(self) -> set[int]:
        return set(self.sent)

    def report(self, kind: str, parameter_id: int, sequence: int, values: dict[str, float]) -> None:
        if self.is_gone:
            raise NodeGone("gone")
        assert all(map(math.isfinite, values.values()))
        self.sent.append(sequence)

    def node_lives(self) -> bool:
        return not self.is_gone


REPORTERS: dict[str, Callable[[Any, TrialFolder], Reporter]] = {
    "none": lambda channel, folder: NoReporter(),
    "callback": lambda channel, folder: CallbackReporter(lambda record: channel.report("", 0, record.step - 1, {})),
    "nni": lambda channel, folder: NniReporter(channel, folder, 0, "srcc", LAST),
}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """NNI's reporter ignores the signal of the assessor after the last epoch."""
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("name", REPORTERS)
class TestReporter:
    def test_each_epoch_is_accepted_and_the_last_one_again(self, name: str, tmp_path: Path) -> None:
        channel, folder = Channel(), TrialFolder(tmp_path)
        reporter = REPORTERS[name](channel, folder)
        for step in (1, 2, LAST):
            folder.append(epoch_record(step, srcc=0.1 * step))
            reporter.report(folder.epochs()[-1])
        REPORTERS[name](channel, folder).report(folder.epochs()[-1])  # as a trial that is resumed does
        assert sorted(set(channel.sent)) == ([] if name == "none" else [0, 1, 2])

    def test_a_metric_that_is_no_number_is_accepted(self, name: str, tmp_path: Path) -> None:
        folder = TrialFolder(tmp_path)
        folder.append(epoch_record(1, srcc=math.nan))
        REPORTERS[name](Channel(), folder).report(folder.epochs()[-1])


def test_a_node_that_is_gone_stops_the_trial(tmp_path: Path) -> None:
    channel, folder = Channel(), TrialFolder(tmp_path)
    reporter = REPORTERS["nni"](channel, folder)
    folder.append(epoch_record(1, srcc=0.5))
    channel.is_gone = True
    with pytest.raises(TrialStopped):
        reporter.report(folder.epochs()[-1])
