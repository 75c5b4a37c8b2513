"""NNI's part of a study's folder.

runs/NAME/nni/               for the owner alone
├── config.json              the experiment, as of the last start
├── workers.json             slots and cache, for the trials
├── connection.json          process, port and secret of the node that runs
├── ended.json               why node ended, if it ended by itself
├── attached.lock            held by the command that watches
├── slots/                   a lock file per slot
├── node.log  nni-experiments/
└── experiment/              NNI's own: db/nni.sqlite  log/  environments/
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elta_tune.executors.local import Slot
from elta_tune.files import write_json
from elta_tune.records import StudyFolder

EXPERIMENT = "experiment"
"""NNI's id of the experiment, and its folder's name: each study has a place of its own."""


@dataclass(frozen=True)
class Workers:
    """Where a study's trials may run, and where the decoded images are."""

    slots: list[Slot]
    cache: Path


class NniFolder:
    """NNI's part of a study's folder."""

    def __init__(self, study: StudyFolder) -> None:
        self.study = study
        self.path = study.path / "nni"
        self.config_file = self.path / "config.json"
        self.workers_file = self.path / "workers.json"
        self.connection_file = self.path / "connection.json"
        self.patched_file = self.path / "patched.json"
        self.ended_file = self.path / "ended.json"
        self.attached_lock = self.path / "attached.lock"
        self.slots = self.path / "slots"
        self.node_log = self.path / "node.log"
        self.index_file = self.path / "nni-experiments" / ".experiment"
        self.experiment = self.path / EXPERIMENT
        self.database = self.experiment / "db" / "nni.sqlite"
        self.dispatcher_log = self.experiment / "log" / "dispatcher.log"

    def create(self) -> None:
        """Makes the folder, which only its owner may enter: NNI keeps parameters, logs and its secret there."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.index_file.parent.mkdir(exist_ok=True)

    def remove_empty(self) -> None:
        """Takes back what `create` and a lock made, as far as nothing else is there."""
        self.attached_lock.unlink(missing_ok=True)
        for folder in (self.index_file.parent, self.path, self.study.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def workers(self) -> Workers:
        """`workers.json`."""
        content = json.loads(self.workers_file.read_text(encoding="utf-8"))
        return Workers([Slot(**slot) for slot in content["slots"]], Path(content["cache"]))

    def write_workers(self, workers: Workers) -> None:
        """Writes `workers.json`."""
        slots = [{"device": slot.device, "threads": slot.threads} for slot in workers.slots]
        write_json(self.workers_file, {"slots": slots, "cache": workers.cache})

    def ended(self) -> dict[str, Any] | None:
        """Why node ended by itself: `reason` done, exhausted, alike, failures (in a row), tuner or error, and `detail`;
        None if it was ended, or is another user's.
        """
        try:
            told: dict[str, Any] = json.loads(self.ended_file.read_text(encoding="utf-8"))
        except OSError:
            return None
        return told
