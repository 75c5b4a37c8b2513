"""Files of predictions: ours, and `test_result.csv` and `logits.csv` of ELTA's released code.

Their columns are `image_id,gt,score[,score2,score3…]`; score2 is the share, or the logit, of the lowest rating.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from elta_tune.data.readers.tables import load, open_sheet
from elta_tune.data.readers.text import ID_COLUMNS
from elta_tune.errors import DataError
from elta_tune.training.loop import Predictions


def read_predictions(path: Path) -> Predictions:
    """Reads a file of predictions; `truth` is None without a `gt` column.

    Columns of shares give the logits up to a constant of each row, which neither a softmax nor its sharpening sees;
    columns of logits give the shares.

    Raises:
        DataError: the file can't be read, a column is missing or a cell is no number: file, line, column.
    """
    sheet = open_sheet(path)
    ids = next((name for name in ID_COLUMNS if name in sheet.columns), None)
    if ids is None or "score" not in sheet.columns:
        raise DataError(
            f"{path}: not a file of predictions: its columns are {', '.join(sheet.columns)}",
            "they should be image_id, gt, score and, for distributions, score2, score3 and so on",
        )
    table = load(sheet, sheet.columns, text=[ids])
    bins = sorted((name for name in sheet.columns if re.fullmatch(r"score\d+", name)), key=lambda name: int(name[5:]))
    distributions, logits = _as_both(table.numbers(*bins)) if len(bins) > 1 else (None, None)
    return Predictions(
        ids=table.text(ids).to_numpy(dtype=object),
        truth=table.numbers("gt")[:, 0] if "gt" in sheet.columns else None,
        scores=table.numbers("score")[:, 0],
        distributions=distributions,
        logits=logits,
    )


def _as_both(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], torch.Tensor]:
    """Shares (N, K) and logits (N, K) from columns that are either."""
    are_shares = bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3))
    if are_shares:
        smallest = np.finfo(np.float32).tiny  # a share that was rounded to nothing
        return values.astype(np.float32), torch.from_numpy(np.log(np.maximum(values, smallest))).float()
    logits = torch.from_numpy(values).float()
    return logits.softmax(dim=1).numpy(), logits
