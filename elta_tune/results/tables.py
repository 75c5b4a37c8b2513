"""Predictions as files: CSV, JSON lines or Parquet, by the file's name."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from elta_tune.errors import ConfigError
from elta_tune.files import as_utf8, atomic_path, to_json
from elta_tune.models.outputs import naming_unwritable
from elta_tune.results.predict import Prediction

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROWS_AT_A_TIME = 10_000
"""Of a Parquet file."""


def check_table(path: Path) -> None:
    """Refuses a file that can't be written, before anything is predicted.

    Raises:
        ConfigError: another suffix, or pyarrow is missing.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"`out={path}`: its name should end in one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        _pyarrow()


def write_table(path: Path, predictions: Iterable[Prediction], bins: int) -> None:
    """Writes predictions as they come; the file appears when it is complete.

    Columns are `image_id,score[,score2,…],reason` in a CSV (score2 is the share of the lowest rating, as in all files
    of predictions), and `image_id, score, distribution, reason` in the others.

    Args:
        bins: K of the distributions, 0 without.

    Raises:
        StudyError: it can't be written.
    """
    write = {".csv": _write_csv, ".jsonl": _write_json_lines, ".parquet": _write_parquet}[path.suffix]
    with naming_unwritable(path), atomic_path(path) as aside:
        write(aside, predictions, bins)


def json_line(prediction: Prediction) -> str:
    """One prediction as a JSON object."""
    return to_json(_record(prediction))


def _record(prediction: Prediction) -> dict[str, Any]:
    shares = prediction.distribution
    # float(str(…)): 0.1 in float32 is written as 0.1, not as 0.10000000149011612
    distribution = None if shares is None else [float(str(share)) for share in shares]
    return {
        "image_id": as_utf8(prediction.image_id),
        "score": prediction.score,
        "distribution": distribution,
        "reason": None if prediction.reason is None else as_utf8(prediction.reason),
    }


def _write_csv(path: Path, predictions: Iterable[Prediction], bins: int) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", "score", *(f"score{k + 2}" for k in range(bins)), "reason"])
        for one in predictions:
            shares = [""] * bins if one.distribution is None else [str(share) for share in one.distribution]
            writer.writerow([one.image_id, "" if one.score is None else repr(one.score), *shares, one.reason or ""])


def _write_json_lines(path: Path, predictions: Iterable[Prediction], bins: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json_line(one) + "\n" for one in predictions)


def _write_parquet(path: Path, predictions: Iterable[Prediction], bins: int) -> None:
    arrow = _pyarrow()
    from pyarrow import parquet

    columns = [("image_id", arrow.string()), ("score", arrow.float64())]
    columns += [("distribution", arrow.list_(arrow.float32())), ("reason", arrow.string())]
    schema = arrow.schema(columns)
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _chunks(predictions):
            writer.write_table(arrow.Table.from_pylist([_record(one) for one in rows], schema=schema))


def _chunks(predictions: Iterable[Prediction]) -> Iterator[list[Prediction]]:
    remaining = iter(predictions)
    while rows := list(itertools.islice(remaining, ROWS_AT_A_TIME)):
        yield rows


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise ConfigError(
            "writing Parquet needs pyarrow", "install the extra: pip install 'elta-tune[parquet]'"
        ) from None
    return pyarrow
