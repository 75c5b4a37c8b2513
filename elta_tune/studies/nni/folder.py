"""NNI's part of a study's folder.

runs/NAME/nni/               only its owner may enter it
├── config.json              the experiment and its limits on failures, as of the last start
├── workers.json             slots and cache, for the trials
├── connection.json          process, port and secret of the node process
├── patched.json             classes of NNI that are patched, as of the last start
├── ended.json               why node ended, if it ended by itself
├── attached.lock            held by the command that watches
├── slots/                   a lock file per slot
├── work/                    working directory of the tuner and the trials; made empty by each start
├── node.log  nni-experiments/
└── experiment/              NNI's own: db/nni.sqlite  log/  environments/
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from elta_tune.errors import StudyError
from elta_tune.executors import Slot
from elta_tune.files import damage_errors, parse_json, read_regular, write_json
from elta_tune.records import StudyFolder
from elta_tune.records.reader import read_record

Record = TypeVar("Record")
EXPERIMENT = "experiment"
"""NNI's id of the experiment, and its folder's name: each study has a place of its own."""


@dataclass(frozen=True)
class Workers:
    """`workers.json`: where a study's trials may run, and where the decoded images are."""

    slots: tuple[Slot, ...]
    cache: Path


@dataclass(frozen=True)
class Connection:
    """`connection.json`: how to reach the node process that was started last."""

    process: Annotated[int, Field(strict=True, gt=0, lt=2**31)]
    port: Annotated[int, Field(strict=True, gt=0, lt=2**16)]
    prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """The secret of the start: the first part of each address that node serves."""


@dataclass(frozen=True)
class Ending:
    """`ended.json`: why node ended by itself; `alike` and `failures`: trials in a row failed, for one cause or for any;
    `halted`: a trial can't continue until the user does something.
    """

    reason: Literal["done", "exhausted", "alike", "failures", "halted", "tuner", "error"]
    detail: str | None = None


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
        self.work = self.path / "work"
        self.node_log = self.path / "node.log"
        self.index_file = self.path / "nni-experiments" / ".experiment"
        self.experiment = self.path / EXPERIMENT
        self.database = self.experiment / "db" / "nni.sqlite"
        self.dispatcher_log = self.experiment / "log" / "dispatcher.log"

    def create(self) -> None:
        """Makes the folder, which only its owner may enter: NNI keeps parameters, logs and its secret there.

        Raises:
            StudyError: something in it is neither a file nor a folder.
        """
        self.refuse_links()
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.index_file.parent.mkdir(exist_ok=True)

    def refuse_links(self) -> None:
        """Refuses links, pipes and devices: what is written here would be written elsewhere, or block.

        Raises:
            StudyError: names the first one.
        """
        for path in self._entries():
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                raise StudyError(f"{path}: should be a file or a folder, not a link, a pipe or a device", "remove it")

    def _entries(self) -> Iterator[Path]:
        """All that is here, but the links to the trials' logs, which are only read."""
        if os.path.lexists(self.path):
            yield self.path
        for folder, folders, files in os.walk(self.path):
            yield from (Path(folder, name) for name in [*folders, *files] if name != "trial.log")

    def make_work(self) -> None:
        """Empties `work/`: a module in it could be imported instead of the real one."""
        if self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir()

    def remove_empty(self) -> None:
        """Removes the files of `create` and of a lock, unless the folder contains others."""
        self.attached_lock.unlink(missing_ok=True)
        for folder in (self.index_file.parent, self.path, self.study.path):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def workers(self) -> Workers:
        """Where the trials of the node that runs may run.

        Raises:
            DamagedError: the file can't be read.
        """
        return _read(Workers, self.workers_file)

    def write_workers(self, workers: Workers) -> None:
        """Writes `workers.json`."""
        write_json(self.workers_file, asdict(workers))

    def connection(self) -> Connection | None:
        """How to reach the node that was started last, or None if none was, or if this user may not look.

        Raises:
            DamagedError: the file can't be read.
        """
        return _read(Connection, self.connection_file) if os.path.lexists(self.connection_file) else None

    def write_ended(self, ending: Ending) -> None:
        """Writes `ended.json`."""
        write_json(self.ended_file, asdict(ending))

    def ended(self) -> Ending | None:
        """Why node ended by itself; None if it was ended, or if this user may not look.

        Raises:
            DamagedError: the file can't be read.
        """
        return _read(Ending, self.ended_file) if os.path.lexists(self.ended_file) else None


def _read(kind: type[Record], path: Path) -> Record:
    with damage_errors(path):
        return read_record(kind, parse_json(read_regular(path), str(path)), str(path))
