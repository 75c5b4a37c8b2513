"""What is on disk, and only here how it is written.

    runs/NAME/                       a study                        StudyFolder
    ├── study.yaml                   space, recipe, seed, versions
    ├── study.db  study.lock
    └── trials/0000/                 a trial                        TrialFolder
        ├── config.yaml              complete: re-runs by itself
        ├── metrics.jsonl            a line per epoch
        ├── best.safetensors         weights of the best epoch; over a frozen backbone, of the head alone
        ├── last.ckpt                to resume; gone when finished
        ├── pseudo_labels/round_1.csv
        ├── predictions.csv          validation, at the best epoch
        ├── log.txt  trial.lock      the lock where no study's holds the trial
        └── result.json              written last; its absence means unfinished

`metrics.jsonl` is appended, and a torn last line dropped; the other files are written under a temporary name and then
renamed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any

from elta_tune.errors import DamagedError, StudyError
from elta_tune.files import damage_errors, remove_leftovers, to_json, write_atomic, write_json, write_text
from elta_tune.locks import Held, hold, is_held, owner
from elta_tune.suggestions import did_you_mean

if TYPE_CHECKING:  # torch takes seconds to import, and `elta-tune list` reads folders only
    from elta_tune.training.predict import Predictions
    from elta_tune.training.self_training import Epoch
    from elta_tune.training.state import Selection


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

        A checkpoint whose best weights are gone is removed: no training can go on from it, so the trial begins anew.
        The epochs that were told of stay told: on a CPU they are the same again.

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
        log = self.log_file.open("a", buffering=1, encoding="utf-8")
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        sys.stdout = sys.stderr = log
        faulthandler.enable(log)

    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the trial is unfinished.

        Raises:
            StudyError: it is damaged, or can't be read.
        """
        with damage_errors(self.result_file):
            if not self.result_file.exists():
                return None
            return _json_object(self.result_file.read_bytes(), f"{self.result_file}", state=str, trial=int | None)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; what was not a finite number is None in them.

        Raises:
            StudyError: a line is damaged, other than by a kill, or the file can't be read.
        """
        with damage_errors(self.metrics_file):
            whole = self._whole_lines()
        return self._parsed(whole)

    def _parsed(self, lines: bytes) -> list[dict[str, Any]]:
        return [
            _json_object(line, f"{self.metrics_file}:{number}", step=int)
            for number, line in enumerate(lines.splitlines(), start=1)
        ]

    def _whole_lines(self) -> bytes:
        """`metrics.jsonl` up to its last newline: what follows was torn by a kill, and its checkpoint has it again."""
        if not self.metrics_file.exists():
            return b""
        content = self.metrics_file.read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def save(self, epoch: Epoch, record: dict[str, Any]) -> None:
        """Saves the checkpoint of an epoch, its selection, and its weights if they are the best.

        `last.ckpt` is the moment of truth: the best weights wait beside until it is there, so that after a kill both
        files belong together.
        """
        import torch
        from safetensors.torch import save_file

        if epoch.selection is not None:
            write_selection(self._selection_file(epoch.selection.round), epoch.selection)
        if epoch.is_best:
            metadata = {"step": str(epoch.step)}
            write_atomic(self._next_best, lambda temporary: save_file(epoch.weights, temporary, metadata=metadata))
        checkpoint = {**epoch.checkpoint, "record": record}
        write_atomic(self.last_file, lambda temporary: torch.save(checkpoint, temporary))
        if epoch.is_best:
            self._next_best.replace(self.best_file)

    def pseudo_labels(self, round: int) -> dict[str, float]:
        """The scores of a round's pseudo-labels by image; none where it has none."""
        import pandas as pd

        if not (file := self._selection_file(round)).exists():
            return {}
        table = pd.read_csv(file, usecols=["image_id", "score"], dtype={"image_id": str}, keep_default_na=False)
        return dict(zip(table["image_id"], table["score"].tolist(), strict=True))

    def _selection_file(self, round: int) -> Path:
        return self.path / "pseudo_labels" / f"round_{round}.csv"

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends an epoch to `metrics.jsonl`, unless it is there.

        Raises:
            StudyError: a line of it is damaged.
            OSError: it can't be read or written.
        """
        whole = self._whole_lines()
        if any(line["step"] == record["step"] for line in self._parsed(whole)):
            return
        with self.metrics_file.open("ab") as file:
            file.truncate(len(whole))
            file.write((to_json(record) + "\n").encode())

    def checkpoint(self) -> dict[str, Any] | None:
        """`last.ckpt` with the best weights as `best_weights`, or None if no epoch was saved."""
        if not self.last_file.exists():
            return None
        import torch
        from safetensors import safe_open
        from safetensors.torch import load_file

        checkpoint: dict[str, Any] = torch.load(self.last_file, map_location="cpu", weights_only=True)
        if self._next_best.exists():
            with safe_open(self._next_best, framework="pt") as file:
                belongs = file.metadata()["step"] == str(checkpoint["best"]["step"])
            self._next_best.replace(self.best_file) if belongs else self._next_best.unlink()
        return {**checkpoint, "best_weights": load_file(self.best_file)}

    def finish(self, result: Mapping[str, Any], checkpoint: Mapping[str, Any] | None) -> None:
        """Writes the predictions that a checkpoint has of its best epoch and, last, `result.json`."""
        if checkpoint is not None:
            from elta_tune.training.predict import Predictions
            from elta_tune.training.state import from_plain

            predictions = from_plain(Predictions, checkpoint["best"]["predictions"])
            write_atomic(self.predictions_file, lambda temporary: write_predictions(temporary, predictions))
        write_json(self.result_file, result)
        self.clear()

    def fail(self, number: int, params: Mapping[str, Any], reason: str, **facts: Any) -> None:
        """Writes the `result.json` of a trial that could not write its own, with what its checkpoint has.

        Args:
            facts: what else it tells.
        """
        try:
            checkpoint = self.checkpoint()
        except Exception:  # a checkpoint that can't be read may be the very fault
            checkpoint = None
        epochs = self.epochs()
        result: dict[str, Any] = {"trial": number, "state": "failed", "reason": reason, **outcome(checkpoint)}
        result |= {"params": dict(params), "rounds": [], "seconds": epochs[-1]["elapsed"] if epochs else 0.0}
        self.finish(result | facts, checkpoint)

    def clear(self) -> None:
        """Removes what only a resume needs."""
        self.last_file.unlink(missing_ok=True)
        self._next_best.unlink(missing_ok=True)
        remove_leftovers(self.path)


def _json_object(content: bytes, place: str, **fields: type | UnionType) -> dict[str, Any]:
    """The JSON object that a file or a line holds.

    Args:
        fields: a field that it has to have, and of which type: by it one tells it from what else is JSON.

    Raises:
        StudyError: it is damaged.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{place}: is damaged: {error}") from error
    for name, kind in fields.items():
        if not isinstance(found, dict) or not isinstance(found.get(name, ...), kind):
            raise DamagedError(f"{place}: is damaged: it should be an object with a {name}")
    return found  # type: ignore[no-any-return]


def write_selection(path: Path, selection: Selection) -> None:
    """Writes `image_id,score,confidence,sharpened_1,…,raw_1,…`; the shares' first is that of the lowest rating."""
    import pandas as pd

    columns: dict[str, Any] = {"image_id": selection.ids, "score": selection.scores}
    columns["confidence"] = selection.sharpened.amax(dim=1).numpy()
    for kind, distributions in (("sharpened", selection.sharpened), ("raw", selection.raw)):
        columns |= {f"{kind}_{k}": column.numpy() for k, column in enumerate(distributions.T, start=1)}
    table = pd.DataFrame(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False, errors="backslashreplace"))


def outcome(checkpoint: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a trial reached, for `result.json`: its best epoch, whose weights are in the folder."""
    if checkpoint is None:
        return {**dict.fromkeys(("value", "best_step", "best_round", "best_epoch")), "metrics": {}}
    best = checkpoint["best"]
    place = {f"best_{name}": best[name] for name in ("step", "round", "epoch")}
    return {"value": best["value"], **place, "metrics": best["metrics"]}


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes `image_id,gt,score[,score2…]`, the released code's columns: score2 is the share of the lowest rating."""
    import pandas as pd

    columns: dict[str, Any] = {"image_id": predictions.ids, "gt": predictions.truth, "score": predictions.scores}
    if predictions.distributions is not None:
        columns |= {f"score{k + 2}": column for k, column in enumerate(predictions.distributions.T)}
    pd.DataFrame(columns).to_csv(path, index=False, errors="backslashreplace")


@contextlib.contextmanager
def locked(file: Path, told: str, hint: str, elsewhere: str) -> Iterator[int]:
    """Holds a lock file; yields its descriptor.

    Raises:
        StudyError: another process holds it (`told`, `hint`), or it can't be written (`elsewhere`).
    """
    with contextlib.ExitStack() as held:
        try:
            descriptor = held.enter_context(hold(file))
        except Held as other:
            raise StudyError(f"{told} ({other})", hint) from None
        except OSError as error:
            raise StudyError(f"{file.parent}: can't be written: {error.strerror}", elsewhere) from error
        yield descriptor


class StudyFolder:
    """One study on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.study_file = path / "study.yaml"
        self.database = path / "study.db"
        self.lock_file = path / "study.lock"

    @property
    def name(self) -> str:
        """The folder's name is the study's."""
        return self.path.name

    def exists(self) -> bool:
        """Whether a study was started here.

        Raises:
            StudyError: its folder can't be looked into.
        """
        with damage_errors(self.study_file):
            return self.study_file.exists()

    def create(self, study_yaml: str) -> None:
        """Makes the folder with its `study.yaml`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.study_file, study_yaml)

    def trial(self, number: int) -> TrialFolder:
        """The folder of a trial, whether it is there or not."""
        return TrialFolder(self.path / "trials" / f"{number:04d}")

    def trials(self) -> list[tuple[int, TrialFolder]]:
        """All trials that have a folder, by number."""
        numbers = sorted(int(path.name) for path in (self.path / "trials").glob("[0-9]*") if path.name.isdigit())
        return [(number, self.trial(number)) for number in numbers]

    def results(self) -> list[dict[str, Any]]:
        """`result.json` of all finished trials, by number."""
        return [result for _, folder in self.trials() if (result := folder.result()) is not None]

    def ended(self) -> int:
        """How many trials count toward a budget: complete or pruned."""
        return sum(result["state"] in ("complete", "pruned") for result in self.results())

    def lock(self) -> contextlib.AbstractContextManager[int]:
        """Holds the study for one supervisor; yields the lock's descriptor, which a child may inherit.

        Raises:
            StudyError: another one holds it, or the folder can't be written.
        """
        watch = f"watch it: elta-tune show {self.name}" if self.exists() else f"end it: elta-tune stop {self.name}"
        hint = f"{watch}; or start another with --name"
        return locked(self.lock_file, f"study {self.name} is already running", hint, "`runs` names another place")

    def is_running(self) -> bool:
        """Whether a supervisor holds the study now.

        Raises:
            StudyError: its lock can't be read.
        """
        with damage_errors(self.lock_file):
            return is_held(self.lock_file)

    def is_preparing(self) -> bool:
        """Whether a supervisor holds the study and has not started it yet: it decodes images, say."""
        return not self.exists() and self.lock_file.is_file() and self.is_running()


def find_studies(runs: Path) -> list[StudyFolder]:
    """All studies in a folder of runs that one may look into, the last changed last.

    Raises:
        StudyError: the folder of runs itself can't be looked at.
    """
    return sorted(_folders_with("study.yaml", runs), key=lambda study: (_last_change(study), study.name))


def preparing_studies(runs: Path) -> list[StudyFolder]:
    """All studies in a folder of runs that are not started yet, by name."""
    return [study for study in _folders_with("study.lock", runs) if study.is_preparing()]


def _folders_with(file: str, runs: Path) -> list[StudyFolder]:
    with damage_errors(runs):
        return [StudyFolder(path.parent) for path in sorted(runs.glob(f"*/{file}"))]


def open_study(name: str | None, runs: Path, *, preparing: bool = False) -> StudyFolder:
    """A study by its folder or its name under `runs`; left out, the last one.

    Args:
        preparing: also by its name one that is not started yet.

    Raises:
        StudyError: there is none, it is not started yet, or it can't be read.
    """
    studies = find_studies(runs)
    if name is None:
        if not studies:
            for study in preparing_studies(runs):
                raise _not_started(study)
            raise StudyError(f"there is no study in {runs}", "start one: elta-tune run --space default.yaml")
        return studies[-1]
    for path in (Path(name), runs / name):
        study = StudyFolder(path.absolute())
        if study.exists() or (preparing and study.is_preparing()):
            return study
        if study.is_preparing():
            raise _not_started(study)
    names = [study.name for study in studies]
    listing = f"there are: {', '.join(names)}" if names else None
    raise StudyError(f"there is no study {name!r} in {runs}{did_you_mean(name, names)}", listing)


def _not_started(study: StudyFolder) -> StudyError:
    told = f"study {study.name} is being prepared ({owner(study.lock_file) or 'another process'})"
    return StudyError(told, f"wait until it starts; or end it: elta-tune stop {study.name}")


def _last_change(study: StudyFolder) -> float:
    files = [study.study_file, study.database, *(folder.metrics_file for _, folder in study.trials())]
    # os.path's says no where one may not look: who opens the study is told
    return max((file.stat().st_mtime for file in files if os.path.exists(file)), default=0.0)
