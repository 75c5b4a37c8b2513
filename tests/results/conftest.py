"""The study with one real trial that tests of results and of models share."""

from finished_study import (
    change_weights,
    data,
    diverged,
    labelled,
    measured_here,
    result,
    study,
    trained,
    trial,
)

__all__ = ["change_weights", "data", "diverged", "labelled", "measured_here", "result", "study", "trained", "trial"]
