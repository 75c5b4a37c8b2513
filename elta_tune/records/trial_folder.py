"""The folder of a trial."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elta_tune.errors import StudyError
from elta_tune.files import (
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
    """`last.ckpt`: the epoch that it was saved after, the best one so far, and all that a training goes on from."""

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

    def create(self, config_yaml: str) -> None:
        """Makes the folder, or checks that the one that is there trains the same.

        A checkpoint whose best weights are gone is removed: no training can go on from it, so the trial begins again.
        The epochs that were reported stay so: on a CPU they are the same again.

        Raises:
            StudyError: the folder holds another configuration.
            OSError: it can't be made.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)
        if not self.config_file.exists():
            write_text(self.config_file, config_yaml)
        elif self.config_file.read_text(encoding="utf-8") != config_yaml:
            raise StudyError(f"{self.config_file}: another configuration was trained here", "choose another --out")
        if not (self.best_file.exists() or self._next_best.exists()):
            self.last_file.unlink(missing_ok=True)

    def lock(self) -> contextlib.AbstractContextManager[int]:
        """Holds the folder of a trial that no study holds.

        Raises:
            StudyError: another process trains here, or the folder can't be written.
        """
        return locked(self.lock_file, f"{self.path}: is being trained", "choose another --out", "--out names another")

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
        return TrialResult.from_dict(parse_json(content, place), place)

    def epochs(self) -> list[EpochRecord]:
        """The lines of `metrics.jsonl`.

        Raises:
            DamagedError: a line is damaged, other than by a kill, or the file can't be read.
        """
        with damage_errors(self.metrics_file):
            whole = self._whole_lines()
        return self._parsed(whole)

    def _parsed(self, lines: bytes) -> list[EpochRecord]:
        places = ((line, f"{self.metrics_file}:{number}") for number, line in enumerate(lines.splitlines(), start=1))
        return [EpochRecord.from_dict(parse_json(line, place), place) for line, place in places]

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
        """Appends an epoch to `metrics.jsonl`, unless it is there.

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

    def checkpoint(self) -> SavedEpoch | None:
        """`last.ckpt` with the weights of the best epoch, or None if no epoch was saved."""
        if not self.last_file.exists():
            return None
        import torch
        from safetensors import safe_open
        from safetensors.torch import load_file

        content: dict[str, Any] = torch.load(self.last_file, map_location="cpu", weights_only=True)
        best = Best(**{name: content["best"][name] for name in ("step", "round", "epoch", "value", "metrics")})
        if self._next_best.exists():
            with safe_open(self._next_best, framework="pt") as file:
                belongs = file.metadata()["step"] == str(best.step)
            self._next_best.replace(self.best_file) if belongs else self._next_best.unlink()
        record = EpochRecord.from_dict(parse_json(to_json(content["record"]).encode(), ""), f"{self.last_file}: record")
        return SavedEpoch(record, best, {**content, "best_weights": load_file(self.best_file)})

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
