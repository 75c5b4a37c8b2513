"""What a back end is, and a study that runs under one.

The API, the CLI and the common modules of this room know back ends by these protocols and by the table of names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from elta_tune.errors import ConfigError, StudyError
from elta_tune.records import StudyFolder
from elta_tune.studies.events import Event, StopReason
from elta_tune.studies.plan import StudyPlan, read_facts
from elta_tune.suggestions import did_you_mean

if TYPE_CHECKING:  # what a view of a study does without: they import torch
    from elta_tune.data.cache.progress import Progress
    from elta_tune.data.dataset import Dataset
    from elta_tune.executors import Slot

MODULES = {"optuna": "elta_tune.studies.optuna.backend", "nni": "elta_tune.studies.nni.backend"}
"""Where each back end is: its module, imported when it is used, has it as `BACKEND`."""
DEFAULT = "optuna"
"""The back end of a new study."""

Say = Callable[[str], None]
"""Takes a line for the user while something takes long."""


@dataclass(frozen=True)
class StudyRequest:
    """A study that is to run. It may already exist."""

    folder: StudyFolder
    plan: StudyPlan
    """As the files and overrides say; for an existing study, `resolve_plan` gives the plan that it continues with."""
    backend: str
    files: dict[str, str]
    """The files of space and recipe, for `study.yaml`."""
    trials: int | None = None
    timeout: float | None = None
    """The budget (seconds), where another than the space's or the study's own."""


@dataclass(frozen=True)
class LaunchOptions:
    """Where the trials of a study run. Nothing here changes a result."""

    cache: Path
    """Folder of decoded images."""
    preparing: AbstractContextManager[Progress]
    """Is entered before what takes long, and yields what takes its progress."""
    workers: int | None = None
    """Trials that run at the same time; None: one per device."""
    devices: Sequence[str] | None = None
    """Their names; None: every GPU, or else the CPU."""
    executor: str = "local"
    """What runs the trials, where the back end leaves it to this process: local or inline."""
    port: int | None = None
    """Of the web UI, where the back end has one; None: a free one."""


class RunningStudy(Protocol):
    """A study whose trials run, or start when `events` is called for the first time."""

    interrupted: bool
    """Set from outside, by a signal's handler say: asks for a stop."""

    @property
    def folder(self) -> StudyFolder:
        """Where it is on disk."""
        ...

    @property
    def plan(self) -> StudyPlan:
        """What it runs, with the budget that it has now."""
        ...

    @property
    def resumed(self) -> bool:
        """Whether it existed before this start."""
        ...

    @property
    def attached(self) -> bool:
        """True if it was already running: it may end before it sees a raised budget."""
        ...

    @property
    def dataset(self) -> Dataset | None:
        """What its trials are trained on; None where that was prepared by the command that started it."""
        ...

    @property
    def slots(self) -> Sequence[Slot]:
        """Where its trials run."""
        ...

    @property
    def address(self) -> str | None:
        """Of its web UI."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know of this start, a line each."""
        ...

    @property
    def ignored(self) -> Sequence[str]:
        """Fields of `LaunchOptions` that say otherwise than the study that runs already does."""
        ...

    @property
    def seconds_before(self) -> float:
        """How long it ran before this start, as far as its budget counts time."""
        ...

    @property
    def stopped(self) -> StopReason | None:
        """After `events`: why it ended early. None: its budget or its space is used up."""
        ...

    def events(self) -> Generator[Event, None, None]:
        """Follows the study to its end; closing the generator early ends all running trials.

        Raises:
            StudyError: the study can't continue.
        """
        ...

    def raise_budget(self, plan: StudyPlan) -> None:
        """Records a plan with a larger budget and continues up to it."""
        ...


class Backend(Protocol):
    """Runs studies. None of it needs an import that takes long before `launch`."""

    name: str
    has_ui: bool
    """Whether it has a web UI, and a study can be left running without the command that started it."""

    @property
    def samplers(self) -> Sequence[str]:
        """Those of a space that it has."""
        ...

    @property
    def pruners(self) -> Sequence[str]:
        """Those of a space that it has."""
        ...

    def check_installed(self) -> None:
        """Looks whether it can run here.

        Raises:
            ConfigError: it can't: why, and what to install.
        """
        ...

    def refusals(self, plan: StudyPlan) -> Iterator[str]:
        """Why it can't run a plan, apart from samplers and pruners that it does not have: the field, and the reason."""
        ...

    def launch(self, request: StudyRequest, options: LaunchOptions) -> AbstractContextManager[RunningStudy | None]:
        """Holds a study and makes it ready to run, or joins it where it runs; None where it is finished.

        Leaving the context without a call of `events` leaves a study running that can run by itself.

        Raises:
            EltaTuneError: the study can't start or go on: why, and what to change.
        """
        ...

    def find_running(self, folder: StudyFolder) -> RunningStudy | None:
        """The study as it runs now, if it can be joined."""
        ...

    def open_ui(self, folder: StudyFolder, port: int | None) -> AbstractContextManager[WebUI]:
        """Shows a study that does not run in the web UI.

        Raises:
            StudyError: there is nothing to show, or it does not start.
        """
        ...

    def stop(self, folder: StudyFolder, say: Say) -> bool:
        """Ends a study that runs, as Ctrl-C does; returns whether it ran.

        Raises:
            StudyError: it runs elsewhere, or is another user's.
        """
        ...

    def check_storage(self, folder: StudyFolder, plan: StudyPlan) -> None:
        """Reads what it keeps of a study next to the folders of the trials, and makes it agree with them.

        Raises:
            StudyError: it can't be read; DamagedError: it is damaged.
        """
        ...

    def is_exhausted(self, folder: StudyFolder, plan: StudyPlan) -> bool:
        """Whether the study has nothing left to propose."""
        ...


class WebUI(Protocol):
    """A web UI that is open."""

    @property
    def address(self) -> str:
        """Its URL."""
        ...

    def wait(self) -> None:
        """Returns when it has ended."""
        ...


def load_backend(name: str) -> Backend:
    """A back end by its name.

    Raises:
        ConfigError: there is no such back end.
    """
    if name not in MODULES:
        known = " or ".join(MODULES)
        raise ConfigError(f"`backend={name}`: should be {known}{did_you_mean(name, MODULES)}")
    backend: Backend = import_module(MODULES[name]).BACKEND
    return backend


def backend_of(folder: StudyFolder) -> Backend:
    """The back end of a study that exists.

    Raises:
        ConfigError: its `study.yaml` is damaged, or names an unknown back end.
    """
    return load_backend(str(read_facts(folder).get("backend", DEFAULT)))


def choose_backend(folder: StudyFolder, name: str | None) -> Backend:
    """The named back end, the study's own, or else the default.

    Raises:
        ConfigError: there is no such back end.
        StudyError: the study runs under another one.
    """
    named = load_backend(name or DEFAULT)
    if not folder.exists():
        return named
    own = backend_of(folder)
    if name not in (None, own.name):
        raise StudyError(
            f"study {folder.name} runs under {own.name}, and can't continue under {name}",
            "leave `backend` out to go on with it; or start another study: `name=NAME`",
        )
    return own


def check_plan(plan: StudyPlan, backend: Backend) -> None:
    """Refuses what a back end can't do.

    Raises:
        ConfigError: names every such field.
    """
    space, problems = plan.space, []
    choices = (("sampler", space.sampler.name, backend.samplers), ("pruner", space.pruner.name, backend.pruners))
    for what, name, known in choices:
        if name not in known:
            problems.append(f"{what}.name: {backend.name} has no {name}; it has {', '.join(known)}")
    problems += backend.refusals(plan)
    if problems:
        others = " or ".join(f"`backend={name}`" for name in MODULES if name != backend.name)
        raise ConfigError(
            "\n".join([f"`backend={backend.name}` can't run this space:", *(f"  {problem}" for problem in problems)]),
            f"change the space, or use {others}",
        )
