"""elta-tune: hyperparameter studies of full ELTA trainings (ICML 2024) for image aesthetics assessment.

From Python: `run`, `train`, `evaluate`, `predict` and `best`, the verbs of the command; `run` returns a `Study`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elta_tune.api import Study, best, evaluate, predict, run, train

__all__ = ["Study", "best", "evaluate", "predict", "run", "train"]


def __getattr__(name: str) -> Any:
    """The verbs, once one is asked for: the rooms below import this module, too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from elta_tune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
