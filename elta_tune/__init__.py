"""elta-tune: hyperparameter studies of full ELTA trainings (ICML 2024) for image aesthetics assessment.

From Python: every verb of the command is a function of this module; `run` returns a `Study`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elta_tune.api import (
        DataCheck,
        Exported,
        Study,
        StudySummary,
        best,
        check_data,
        check_space,
        decode_images,
        evaluate,
        export,
        list_cache,
        list_studies,
        open_ui,
        predict,
        remove_from_cache,
        repair,
        run,
        sharpen,
        show,
        space_from_nni,
        space_to_nni,
        stop,
        train,
    )

__all__ = [
    "DataCheck",
    "Exported",
    "Study",
    "StudySummary",
    "best",
    "check_data",
    "check_space",
    "decode_images",
    "evaluate",
    "export",
    "list_cache",
    "list_studies",
    "open_ui",
    "predict",
    "remove_from_cache",
    "repair",
    "run",
    "sharpen",
    "show",
    "space_from_nni",
    "space_to_nni",
    "stop",
    "train",
]


def __getattr__(name: str) -> Any:
    """The verbs, once one is asked for: the rooms below import this module, too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from elta_tune import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
