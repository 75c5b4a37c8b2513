"""The process of a trial under NNI: node starts `python -m elta_tune.studies.nni.trial STUDY`.

It checks that the parameters that it receives are those that NNI recorded for it. Then it calls `run_trial`, as any
other back end does.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from elta_tune.config import TrialConfig
from elta_tune.errors import DamagedError, StudyError, reason_of
from elta_tune.records import EpochRecord, StudyFolder, TrialFolder, TrialResult
from elta_tune.studies.nni.folder import Ending, NniFolder
from elta_tune.studies.nni.node import END_SECONDS, end_with_node, find_node
from elta_tune.studies.nni.rest import NodeGone, Proposal, TrialChannel
from elta_tune.studies.nni.space import Params, decode
from elta_tune.studies.plan import read_plan


class NniReporter:
    """Reports epochs that NNI does not know yet. The assessor answers by a signal, if at all.

    Args:
        folder: of the trial.
        last: the step after which nothing is left to prune.
    """

    def __init__(
        self, channel: TrialChannel, folder: TrialFolder, parameter_id: int, objective: str, last: int
    ) -> None:
        self._channel, self._folder, self._parameter_id = channel, folder, parameter_id
        self._objective, self._last = objective, last
        self._known = channel.reported()

    def report(self, record: EpochRecord) -> None:
        """Sends all new epochs. If a node that runs does not accept them, they are sent with the next one."""
        from elta_tune.trial import TrialStopped

        if record.step >= self._last:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            self._try(self._send_epochs)
        except NodeGone as error:
            raise TrialStopped from error  # the epoch is saved, and the next start of the study resumes from it

    def finish(self, metrics: Mapping[str, float | None]) -> None:
        """Sends the result.

        Raises:
            NodeGone: node ends; the next start sends it.
        """

        def send() -> None:
            self._send_epochs()
            self._channel.report("FINAL", self._parameter_id, 0, finite(metrics, self._objective))

        self._try(send)

    def _try(self, send: Callable[[], None]) -> None:
        try:
            send()
        except NodeGone as error:
            if not self._channel.node_lives():
                raise
            say(f"not reported: {error}")

    def _send_epochs(self) -> None:
        """Sends the epochs whose metric is a number: NNI's JSON has no NaN."""
        for record in self._folder.epochs():
            sequence, values = record.step - 1, finite(record.values, self._objective)
            if sequence not in self._known and "default" in values:
                self._channel.report("PERIODICAL", self._parameter_id, sequence, values)
                self._known.add(sequence)


SHOWN = ("srcc", "plcc", "accuracy", "mae", "mae_low", "mae_mid", "mae_high", "bmae")
"""Metrics for NNI's web UI, next to the objective: each is a column and an axis of the parallel coordinates."""


def finite(metrics: Mapping[str, float | None], objective: str) -> dict[str, float]:
    """The metrics that are numbers: the objective as `default`, which tuner and assessor use, and `SHOWN`."""
    values = {"default": metrics.get(objective), **{name: metrics.get(name) for name in SHOWN}}
    return {name: float(v) for name, v in values.items() if v is not None and math.isfinite(v)}


def say(what: str) -> None:
    """Writes a line to the trial's log."""
    print(f"{time.strftime('%F %T')} {what}", flush=True)


def main() -> None:
    """Runs the trial that the environment names, and ends with the exit code or signal that NNI expects."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
    signal.signal(signal.SIGUSR1, _prune)
    study, number = StudyFolder(Path(sys.argv[1])), int(os.environ["NNI_TRIAL_SEQ_ID"])
    end_with_node(NniFolder(study))
    folder = study.trial(number)
    try:
        state = _run(study, number, folder)
    except KeyboardInterrupt:
        say("stopped, to be resumed")
        _end_by(signal.SIGINT)
    except NodeGone as error:
        say(f"{error}; to be resumed")
        _end_by(signal.SIGINT)
    if state == "pruned":
        _end_by(signal.SIGINT)  # exit code 0 would count as a success
    sys.exit(0 if state == "complete" else 1)


def _prune(number: int, frame: FrameType | None) -> None:
    from elta_tune.trial import TrialPruned

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the result is being written
    raise TrialPruned


def _end_by(number: signal.Signals) -> NoReturn:
    """Ends this process by a signal, as if it had no handler."""
    sys.stdout.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(f"{number.name} did not end the process")


def _log_to(folder: TrialFolder) -> None:
    """Prints to the trial's log from now on, which NNI's web UI shows, too."""
    folder.log_output()
    with contextlib.suppress(FileExistsError):
        Path(os.environ["NNI_OUTPUT_DIR"], "trial.log").symlink_to(folder.log_file)
    say(f"process {os.getpid()}, NNI's trial {os.environ['NNI_TRIAL_JOB_ID']}")


def _run(study: StudyFolder, number: int, folder: TrialFolder) -> str:
    """Requests and checks the parameters and trains; returns the state of the result."""
    trial = os.environ["NNI_TRIAL_JOB_ID"]
    nni = NniFolder(study)
    channel = TrialChannel.open(
        os.environ["NNI_TRIAL_COMMAND_CHANNEL"], trial, number, lambda: find_node(nni) is not None
    )
    params: Params = {}
    try:
        _log_to(folder)
        plan = read_plan(study)
        proposal = channel.parameters()
        check(proposal, channel.recorded_parameters())
        params = decode(plan.space, plan.recipe, proposal.parameters)
        config = plan.recipe.replace(params, source=f"trial {number}")
        objective, last = plan.space.objective.metric, config.planned_epochs
        reporter = NniReporter(channel, folder, proposal.parameter_id, objective, last)
        result = _train(nni, number, config, params, reporter, trial)
    except NodeGone:
        raise
    except (OSError, DamagedError) as error:  # the machine or a file is at fault: the trial stays unfinished
        _halt(nni, number, error)
    except Exception as error:  # a fault of the program: its name is the reason
        traceback.print_exc()
        from elta_tune.trial import record_failure

        record_failure(folder, reason_of(error), number, params, nni_trial_id=trial)
        return "failed"
    say(f"{result.state} {result.reason or ''}")
    if result.state == "complete":
        reporter.finish(result.metrics)
    return result.state


def _halt(nni: NniFolder, number: int, error: Exception) -> NoReturn:
    """Ends the study; its next start resumes this trial."""
    traceback.print_exc()
    with contextlib.suppress(OSError):  # on a full disk it can't be written either
        nni.write_ended(Ending(reason="halted", detail=f"trial {number} can't continue: {error}"))
    if (node := find_node(nni)) is not None:
        node.process.terminate()
        time.sleep(END_SECONDS)  # node ends this process meanwhile
    raise NodeGone("the study has ended")


def check(received: Proposal, recorded: Proposal) -> None:
    """Refuses the parameters of another trial.

    Raises:
        StudyError: NNI sent them.
    """
    for key in ("parameter_id", "parameters"):
        sent, own = getattr(received, key), getattr(recorded, key)
        if sent != own:
            raise StudyError(f"NNI sent the parameters of another trial: {key} {sent}, on record are {own}")


def _train(
    nni: NniFolder, number: int, config: TrialConfig, params: Params, reporter: NniReporter, trial: str
) -> TrialResult:
    """Trains in a slot of its own.

    Raises:
        NodeGone: node ends; the epoch is saved.
    """
    import torch

    from elta_tune.data.cache.image_cache import ImageCache
    from elta_tune.studies.nni.slots import take_slot
    from elta_tune.trial import TrialPruned, TrialStopped, run_trial

    workers = nni.workers()
    if number == 0:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # the recipe is never pruned

    def train(device: str) -> TrialResult:
        return run_trial(
            config,
            nni.study.trial(number),
            reporter,
            cache=ImageCache(workers.cache),
            device=device,
            number=number,
            params=params,
            nni_trial_id=trial,
        )

    with take_slot(nni.slots, workers.slots) as slot:
        say(f"on {slot.device}, {slot.threads} threads")
        torch.set_num_threads(slot.threads)
        try:
            try:
                result = train(slot.device)
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            except TrialPruned:  # it came after the last epoch
                result = train(slot.device)
        except TrialStopped as stopped:
            raise NodeGone("NNI's node is gone") from stopped
        return result


if __name__ == "__main__":
    main()
