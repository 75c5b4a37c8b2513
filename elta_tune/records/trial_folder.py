"""The folder of a trial."""

from __future__ import annotations

import contextlib
import csv
import faulthandler
import io
import os
import pickle
import shutil
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from elta_tune.config import TrialConfig
from elta_tune.documents import parse, read_document
from elta_tune.errors import ConfigError, DamagedError, MismatchError, StudyError, UnreadableError
from elta_tune.files import (
    check_regular,
    damage_errors,
    parse_json,
    read_regular,
    remove_leftovers,
    to_json,
    write_atomic,
    write_csv,
    write_json,
    write_text,
)
from elta_tune.locks import Held, hold
from elta_tune.records.epoch import Best, EpochRecord
from elta_tune.records.result import TrialResult

if TYPE_CHECKING:  # torch takes seconds to import, and `elta-tune list` only reads folders
    import pandas as pd
    from torch import Tensor


@dataclass(frozen=True)
class SavedEpoch:
    """`last.ckpt`: the epoch that it was saved after, the best one so far, and all that a training resumes from."""

    record: EpochRecord
    best: Best
    state: dict[str, Any]
    """The content of the file, as tensors and plain values, and the weights of the best epoch as `best_weights`."""


class TrialFolder:
    """One trial on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.best_file = path / "best.safetensors"
        self.last_file = path / "last.ckpt"
        self.predictions_file = path / "predictions.csv"
        self.log_file = path / "log.txt"
        self.result_file = path / "result.json"
        self.lock_file = path / "trial.lock"
        self._next_best = path / "best.next.safetensors"

    def create(self, config: TrialConfig) -> None:
        """Makes the folder, or checks that the one that exists is of the same recipe: what its file leaves out is the
        default. If the saved state of an unfinished trial is damaged, the trial begins again.

        Raises:
            MismatchError: the folder holds another configuration.
            UnreadableError: its files can't be read.
            OSError: it can't be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        if self.result() is None:
            self.restart_if_damaged()
        if not self.config_file.exists():
            write_text(self.config_file, config.to_yaml())
        elif differences := self.config().differences(config):
            problem = f"{self.config_file}: another configuration was trained here: {'; '.join(differences)}"
            raise MismatchError(problem, "choose another folder; the trial is kept as it is")

    def config(self) -> TrialConfig:
        """`config.yaml`.

        Raises:
            DamagedError: it is damaged.
            UnreadableError: it can't be read, or has fields or values that this version does not know.
        """
        with damage_errors(self.config_file):
            content = read_regular(self.config_file)
        try:
            document = read_document(self.config_file)
        except ConfigError as error:
            raise DamagedError(f"{self.config_file}: is damaged: {error.message}") from error
        missing = [name for name in TrialConfig.model_fields if name not in document.content]
        if missing or not content.endswith(b"\n"):
            raise DamagedError(f"{self.config_file}: is damaged: {', '.join(missing) or 'its end'} is missing")
        try:
            return parse(TrialConfig, document)
        except ConfigError as error:
            raise UnreadableError(error.message, "if a newer version of elta-tune wrote it, update") from error

    def restart_if_damaged(self) -> str | None:
        """Removes the saved state of an unfinished trial if it is damaged, so that the trial begins again.

        Returns:
            What was damaged, as one line, which also goes to `log.txt`; None if nothing was.

        Raises:
            UnreadableError: a file can't be read: its content may be sound, so nothing is removed.
        """
        try:
            self._check_config()
            self._check_state()
        except UnreadableError:
            raise
        except DamagedError as error:
            return self.restart(error.message)
        return None

    def _check_config(self) -> None:
        if self.config_file.exists():
            self.config()

    def _check_state(self) -> None:
        """Checks all that a resume reads, without torch; the content of `last.ckpt` only by its checksums."""
        epochs = self.epochs()
        if epochs and not self.last_file.exists():
            raise DamagedError(f"{self.last_file}: is missing")
        if self.last_file.exists():
            step, best_step = _saved_steps(self.last_file)
            if [record.step for record in epochs[: step - 1]] != list(range(1, step)):  # its own line may be missing
                raise DamagedError(f"{self.metrics_file}: is damaged: it lacks epochs before step {step}")
            weights = [_weights_step(file) for file in (self.best_file, self._next_best) if file.exists()]
            if best_step not in weights:
                raise DamagedError(f"{self.best_file}: is not of step {best_step}, the best one, or is missing")
        counts = {record.round: record.pseudo_labels for record in epochs}
        for number, count in counts.items():
            if (file := self._pseudo_labels_file(number)).exists() or (0 < number <= self._rounds() and count):
                _check_pseudo_labels(file, count)

    def _rounds(self) -> int:
        return self.config().self_training.rounds if self.config_file.exists() else 0

    def restart(self, reason: str) -> str:
        """Removes the saved state; returns a line that says so, which also goes to `log.txt`."""
        line = f"{reason}; the trial begins again"
        try:
            self._check_config()
        except DamagedError:
            self.config_file.unlink(missing_ok=True)
        for file in (self.last_file, self.best_file, self._next_best, self.metrics_file):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.path / "pseudo_labels", ignore_errors=True)
        with self.log_file.open("a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"{line}\n")
        return line

    def lock(self) -> contextlib.AbstractContextManager[int]:
        """Holds the folder of a trial that no study holds.

        Raises:
            StudyError: another process trains here, or the folder can't be written.
        """
        return locked(self.lock_file, f"{self.path}: is being trained", "choose another `out`", "choose another `out`")

    def log_output(self) -> None:
        """Sends all that this process prints from now on, and how it crashes, to `log.txt`."""
        self.path.mkdir(parents=True, exist_ok=True)
        log = self.log_file.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = log
        faulthandler.enable(log)

    def result(self) -> TrialResult | None:
        """`result.json`, or None while the trial is unfinished.

        Raises:
            DamagedError: it is damaged, or can't be read.
        """
        with damage_errors(self.result_file):
            if not self.result_file.exists():
                return None
            content = read_regular(self.result_file)
        place = str(self.result_file)
        try:
            return TrialResult.from_dict(parse_json(content, place), place)
        except DamagedError as error:
            raise DamagedError(error.message, error.hint or "elta-tune repair STUDY rebuilds it") from error

    def epochs(self) -> list[EpochRecord]:
        """The lines of `metrics.jsonl`.

        Raises:
            DamagedError: a line is damaged, other than by a kill, or the file can't be read.
        """
        with damage_errors(self.metrics_file):
            whole = self._whole_lines()
        return self._parsed(whole)

    def _parsed(self, lines: bytes) -> list[EpochRecord]:
        records: list[EpochRecord] = []
        for number, line in enumerate(lines.splitlines(), start=1):
            place = f"{self.metrics_file}:{number}"
            record = EpochRecord.from_dict(parse_json(line, place), place)
            if records and record.step <= records[-1].step:
                raise DamagedError(f"{place}: is damaged: step: {record.step} follows {records[-1].step}")
            records.append(record)
        return records

    def _whole_lines(self) -> bytes:
        """`metrics.jsonl` up to its last newline: what follows was torn by a kill, and its checkpoint has it again."""
        if not self.metrics_file.exists():
            return b""
        content = read_regular(self.metrics_file)
        return content[: content.rfind(b"\n") + 1]

    def save(
        self,
        record: EpochRecord,
        checkpoint: Mapping[str, Any],
        weights: dict[str, Tensor],
        pseudo_labels: pd.DataFrame | None,
    ) -> None:
        """Saves the checkpoint of an epoch, and its weights if they are the best.

        `last.ckpt` decides: the best weights wait under another name until it is there, so that after a kill both
        files belong together.

        Args:
            pseudo_labels: what the pool gives to the next round, at the end of a round that is followed by one.
        """
        import torch
        from safetensors.torch import save_file

        is_best = record.step == record.best_step
        if pseudo_labels is not None:
            file = self._pseudo_labels_file(record.round + 1)
            file.parent.mkdir(exist_ok=True)
            write_csv(file, pseudo_labels)
        if is_best:
            metadata = {"step": str(record.step)}
            write_atomic(self._next_best, lambda temporary: save_file(weights, temporary, metadata=metadata))
        content = {**checkpoint, "record": record.to_dict()}
        write_atomic(self.last_file, lambda temporary: torch.save(content, temporary))
        if is_best:
            self._next_best.replace(self.best_file)

    def pseudo_labels(self, round: int) -> dict[str, float]:
        """The scores of a round's pseudo-labels by image; none if it has none."""
        import pandas as pd

        if not (file := self._pseudo_labels_file(round)).exists():
            return {}
        table = pd.read_csv(file, usecols=["image_id", "score"], dtype={"image_id": str}, keep_default_na=False)
        return dict(zip(table["image_id"], table["score"].tolist(), strict=True))

    def _pseudo_labels_file(self, round: int) -> Path:
        return self.path / "pseudo_labels" / f"round_{round}.csv"

    def append(self, record: EpochRecord) -> None:
        """Appends an epoch to `metrics.jsonl`, unless it is already there.

        Raises:
            DamagedError: a line of it is damaged.
            OSError: it can't be read or written.
        """
        whole = self._whole_lines()
        if any(earlier.step == record.step for earlier in self._parsed(whole)):
            return
        with self.metrics_file.open("ab") as file:
            file.truncate(len(whole))
            file.write((to_json(record.to_dict()) + "\n").encode())

    def weights_step(self) -> int:
        """The step that `best.safetensors` is of.

        Raises:
            DamagedError: it is damaged or missing.
        """
        return _weights_step(self.best_file)

    def selected_nothing(self, round: int) -> bool:
        """Whether the pool had no pseudo-labels for a round, so that the trial ended before it."""
        return self._pseudo_labels_file(round).exists() and not self.pseudo_labels(round)

    def resume_point(self) -> SavedEpoch | None:
        """`checkpoint`, or None if it is damaged: then the trial begins again."""
        try:
            return self.checkpoint()
        except UnreadableError:
            raise
        except DamagedError as error:
            self.restart(error.message)
            return None

    def checkpoint(self) -> SavedEpoch | None:
        """`last.ckpt` with the weights of the best epoch, or None if no epoch was saved.

        Raises:
            DamagedError: it is damaged, or its best weights are.
        """
        if not self.last_file.exists():
            return None
        import torch
        from safetensors.torch import load_file

        _, best_step = _saved_steps(self.last_file)
        try:
            content: dict[str, Any] = torch.load(self.last_file, map_location="cpu", weights_only=True)
            best = Best(**{name: content["best"][name] for name in ("step", "round", "epoch", "value", "metrics")})
            record = EpochRecord.from_dict(parse_json(to_json(content["record"]).encode(), ""), "record")
            if self._next_best.exists():
                belongs = _weights_step(self._next_best) == best_step
                self._next_best.replace(self.best_file) if belongs else self._next_best.unlink()
            if not self.best_file.exists() or _weights_step(self.best_file) != best_step:
                raise DamagedError(f"{self.best_file}: is not of step {best_step}, the best one, or is missing")
            return SavedEpoch(record, best, {**content, "best_weights": load_file(self.best_file)})
        except (DamagedError, OSError):
            raise
        except Exception as error:  # torch and safetensors may raise anything for foreign content
            raise DamagedError(f"{self.last_file}: is damaged: {type(error).__name__}: {error}") from error

    def finish(self, result: TrialResult, predictions: pd.DataFrame | None) -> None:
        """Writes the validation predictions of the best epoch, if there is one, and `result.json` as the last file."""
        if predictions is not None:
            write_csv(self.predictions_file, predictions)
        write_json(self.result_file, result.to_dict())
        self.clear()

    def clear(self) -> None:
        """Removes what only a resume needs."""
        self.last_file.unlink(missing_ok=True)
        self._next_best.unlink(missing_ok=True)
        remove_leftovers(self.path)


class _PlainValues(pickle.Unpickler):
    """Reads the plain values of a pickle; it makes no other objects and runs no code of the file."""

    def find_class(self, module: str, name: str) -> Any:
        """Ordered dictionaries become plain ones; any other class becomes None."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else lambda *_: None

    def persistent_load(self, pid: object) -> None:
        """The storage of a tensor."""


def _saved_steps(file: Path) -> tuple[int, int]:
    """The step that `last.ckpt` was saved after, and the best one; without torch, which may never return from a file
    that was cut.

    Raises:
        DamagedError: it is not whole.
    """
    with damage_errors(file):
        check_regular(file)
        try:
            with zipfile.ZipFile(file) as archive:
                if (broken := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {broken} differs")
                name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                content = _PlainValues(io.BytesIO(archive.read(name))).load()
                return int(content["step"]), int(content["best"]["step"])
        except OSError:
            raise
        except Exception as error:  # zipfile, zlib and pickle may raise anything for foreign content
            raise DamagedError(f"{file}: is damaged: {type(error).__name__}: {error}") from error


def _weights_step(file: Path) -> int:
    """The step that the weights in a file are of."""
    with damage_errors(file):
        check_regular(file)
        try:
            with safe_open(file, framework="np") as opened:
                return int(opened.metadata()["step"])
        except (SafetensorError, TypeError, KeyError, ValueError) as error:
            raise DamagedError(f"{file}: is damaged: {error}") from error


def _check_pseudo_labels(file: Path, count: int) -> None:
    with damage_errors(file):
        text = read_regular(file, limit=2**32).decode("utf-8", "replace") if file.exists() else ""
    try:
        scores = [float(row["score"]) for row in csv.DictReader(io.StringIO(text, newline=""))]
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise DamagedError(f"{file}: is damaged: {error}") from error
    if len(scores) != count or not text.endswith("\n"):
        raise DamagedError(f"{file}: is damaged: it has {len(scores)} of {count} pseudo-labels")


@contextlib.contextmanager
def locked(file: Path, problem: str, hint: str, elsewhere: str) -> Iterator[int]:
    """Holds a lock file; yields its descriptor.

    Raises:
        StudyError: another process holds it (`problem`, `hint`), or it can't be written (`elsewhere`).
    """
    with contextlib.ExitStack() as held:
        try:
            descriptor = held.enter_context(hold(file))
        except Held as other:
            raise StudyError(f"{problem} ({other})", hint) from None
        except OSError as error:
            raise StudyError(f"{file.parent}: can't be written: {error.strerror}", elsewhere) from error
        yield descriptor
