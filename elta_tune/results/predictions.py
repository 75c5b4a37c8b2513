"""Files of predictions: ours, and `test_result.csv` and `logits.csv` of ELTA's released code.

Their columns are `image_id,gt,score[,score2,score3…]`; score2 is the share, or the logit, of the lowest rating.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from elta_tune.data.readers import ID_COLUMNS
from elta_tune.errors import DataError
from elta_tune.training.loop import Predictions


def read_predictions(path: Path) -> Predictions:
    """Reads a file of predictions; `truth` is None without a `gt` column.

    Columns of shares give the logits up to a constant of each row, which neither a softmax nor its sharpening sees;
    columns of logits give the shares.

    Raises:
        DataError: the file can't be read, a column is missing or a cell is no number: file, line, column.
    """
    table = _read_table(path)
    columns = list(table.columns)
    id_column = next((name for name in ID_COLUMNS if name in columns), None)
    if id_column is None or "score" not in columns:
        raise DataError(
            f"{path}: not a file of predictions: its columns are {', '.join(columns)}",
            "they should be image_id, gt, score and, for distributions, score2, score3 and so on",
        )
    shares = sorted((name for name in columns if re.fullmatch(r"score\d+", name)), key=lambda name: int(name[5:]))
    values = _numbers(path, table, shares) if len(shares) > 1 else None
    truth = _numbers(path, table, ["gt"])[:, 0] if "gt" in columns else None
    distributions, logits = (None, None) if values is None else _as_both(values)
    return Predictions(
        table[id_column].to_numpy(dtype=object), truth, _numbers(path, table, ["score"])[:, 0], distributions, logits
    )


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skip_blank_lines=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: can't be read as a table: {' '.join(str(error).split())}") from error
    if table.empty:
        raise DataError(f"{path}: there are no rows below the header")
    return table


def _numbers(path: Path, table: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    """The cells of some columns (N, len(columns))."""
    values = np.empty((len(table), len(columns)))
    for position, name in enumerate(columns):
        # Python reads each decimal to the nearest float, as the file was written; pandas is off by the last bit.
        for row, text in enumerate(table[name]):
            try:
                values[row, position] = float(text)
            except ValueError:
                raise DataError(f"{path}:{row + 2}: {name}: {text!r} is not a number") from None
    return values


def _as_both(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], torch.Tensor]:
    """Shares (N, K) and logits (N, K) from columns that are either."""
    are_shares = bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))
    if are_shares:
        smallest = np.finfo(np.float32).tiny  # a share that was rounded to nothing
        return values.astype(np.float32), torch.from_numpy(np.log(np.maximum(values, smallest))).float()
    logits = torch.from_numpy(values).float()
    return logits.softmax(dim=1).numpy(), logits
