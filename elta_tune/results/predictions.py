"""Files of predictions: elta-tune's, and `test_result.csv` and `logits.csv` of ELTA's released code.

Their columns are `image_id,gt,score[,score2,score3…]`; score2 is the share, or the logit, of the lowest rating. Those
that `predict` writes have no `gt`, and a `reason` where an image has no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from elta_tune.data.readers.columns import ID_COLUMNS
from elta_tune.data.readers.formats import are_shares, in_a_row
from elta_tune.data.readers.tables import Sheet, Table, load, open_sheet
from elta_tune.errors import DataError
from elta_tune.training.predict import Predictions


@dataclass(frozen=True)
class PredictionFile:
    """What a file of predictions holds; `left_out` of its rows have a reason instead of a score."""

    path: Path
    predictions: Predictions
    left_out: int
    table: Table = field(repr=False)

    @property
    def bins(self) -> int:
        """K of the distributions, 0 without."""
        shares = self.predictions.distributions
        return 0 if shares is None else shares.shape[1]

    def require_truth(self, hint: str | None = None) -> NDArray[np.float64]:
        """The true scores (N,).

        Raises:
            DataError: it has none; `hint` says what to do.
        """
        if self.predictions.truth is None:
            raise DataError(f"{self.path}: there is no column gt with the true scores", hint)
        return self.predictions.truth

    def refuse_outside(self, scale: tuple[float, float]) -> None:
        """Refuses true scores that are not on a scale.

        Raises:
            DataError: the first one: file, line, column, rule.
        """
        low, high = scale
        truth = self.table.numbers("gt")[:, 0]
        rule = f"is outside the scale {low:g}…{high:g}; if that is another, say it: `data.scale=[lowest,highest]`"
        self.table.refuse((truth < low) | (truth > high), "gt", rule)


def read_predictions(path: Path) -> PredictionFile:
    """Reads a file of predictions; `truth` is None without a `gt` column.

    Columns of shares give the logits up to a constant of each row, which neither a softmax nor its sharpening sees;
    columns of logits give the shares. Rows with a `reason` are left out.

    Raises:
        DataError: the file can't be read, a column is missing, a cell is not a number or an image is a duplicate: file,
            line, column.
    """
    if path.suffix.lower() in (".jsonl", ".parquet"):
        raise DataError(f"{path}: JSON lines and Parquet are not read", "let `predict` write CSV: `out=FILE.csv`")
    sheet = open_sheet(path)
    ids = next((name for name in ID_COLUMNS if name in sheet.columns), None)
    if ids is None or "score" not in sheet.columns:
        raise DataError(
            f"{path}: not a file of predictions: its columns are {', '.join(sheet.columns)}",
            "they should be image_id, gt, score and, for distributions, score2, score3 and so on",
        )
    bins = _bins(sheet)
    table = load(sheet, sheet.columns, text=[ids, "reason"])
    if "gt" in sheet.columns:  # it would count twice
        table.refuse(table.text(ids).duplicated().to_numpy(), ids, "stands in an earlier row too")
    kept = np.full(len(table.frame), True)
    if "reason" in sheet.columns:
        kept = (table.text("reason") == "").to_numpy(bool)
        table = _filled(table, ~kept, ["score", *bins])
    if not kept.any():
        raise DataError(f"{path}: no image in it has a score")
    distributions, logits = _as_both(table.numbers(*bins)[kept]) if bins else (None, None)
    predictions = Predictions(
        ids=table.text(ids).to_numpy(dtype=object)[kept],
        truth=table.numbers("gt")[kept, 0] if "gt" in sheet.columns else None,
        scores=table.numbers("score")[kept, 0],
        distributions=distributions,
        logits=logits,
    )
    return PredictionFile(path, predictions, int((~kept).sum()), table)


def _bins(sheet: Sheet) -> list[str]:
    """The columns of a distribution, that of the lowest rating first; a lone one is none.

    Raises:
        DataError: one is missing, or has another number.
    """
    bins, wrong = in_a_row(sheet.columns, "score", 2)
    if len(bins) < 2:
        return []
    if wrong is not None:
        hint = "those of a distribution are score2, of the lowest rating, score3 and so on"
        raise DataError(f"{sheet.path}: {wrong}", hint)
    return bins


def _filled(table: Table, rows: NDArray[np.bool_], names: Sequence[str]) -> Table:
    """The table with zeros in cells of rows that are not read: as rows they stay, so that each keeps its line."""
    cells = {name: table.frame[name].astype(object).mask(rows, "0") for name in names}
    return replace(table, frame=table.frame.assign(**cells)) if rows.any() else table


def _as_both(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], torch.Tensor]:
    """Shares (N, K) and logits (N, K) from columns that are either."""
    if are_shares(values):
        smallest = np.finfo(np.float32).tiny  # a share that was rounded to nothing
        shares = values / values.sum(axis=1, keepdims=True)
        return shares.astype(np.float32), torch.from_numpy(np.log(np.maximum(shares, smallest))).float()
    logits = torch.from_numpy(values).float()
    return logits.softmax(dim=1).numpy(), logits
