"""The study with one real trial that tests of results and of models share."""

from finished_study import *  # noqa: F403
