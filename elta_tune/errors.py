"""Everything elta-tune can refuse, as one tree.

    EltaTuneError            one line for the user, a hint, exit code 2
    ├── ConfigError          a recipe, a space or an override is wrong: file, field, rule, value
    ├── DataError            a rating file or its images are wrong: file, line, field
    ├── ModelError           a backbone or its weights are unavailable
    ├── StudyError           a study or trial can't be opened, continued or exported
    │   └── DamagedError     a file of it is damaged
    │       ├── UnreadableError  it can't be read
    │       └── MismatchError    it is of another trial
    └── TrialError           a training ended without a result; the trial becomes failed, the study continues
        ├── DivergedError    the loss is not finite
        └── OutOfMemoryError the device has no memory left

Anything else that is raised is a fault of the program and keeps its traceback.

**Messages name no flags.** What the user can change stands in backticks, as an argument of the API or a field of the
recipe: ``"name a file: `data.val=FILE`"``, ``"`trials=0`: should be 1 or more"``, ``"replace it: `force=True`"``,
``"choose another `out`"``. The command shows these as its flags (`cli/output.py`). Notes and warnings are written the
same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Setting = bool | int | float | str | Path | None | Sequence["Setting"] | Mapping[str, "Setting"]
"""The value of a field, as Python or YAML has it."""
Settings = Mapping[str, Setting]
"""Values of a recipe's fields by their dotted names."""


class EltaTuneError(Exception):
    """What is wrong, and how to go on.

    Args:
        message: what is wrong, with the file and the field's dotted name.
        hint: what to type or change, if that is known.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


def reason_of(error: Exception) -> str:
    """Why a trial failed, for its result: the message, or the type of a fault of the program."""
    return error.message if isinstance(error, EltaTuneError) else f"{type(error).__name__}: {error}"


class ConfigError(EltaTuneError):
    """A recipe, a search space or an override is wrong."""


class DataError(EltaTuneError):
    """A rating file or its images are wrong.

    Args:
        settings: values of the recipe's fields with which a check can go on, to find what else is wrong.
    """

    def __init__(self, message: str, hint: str | None = None, settings: Settings | None = None) -> None:
        super().__init__(message, hint)
        self.settings = settings or {}


class ModelError(EltaTuneError):
    """A backbone or its weights are unavailable."""


class StudyError(EltaTuneError):
    """A study or a trial can't be opened, continued or exported."""


class DamagedError(StudyError):
    """A file of a study or a trial is damaged, or can't be read."""


class UnreadableError(DamagedError):
    """A file of a study or a trial can't be read: the system refuses, it is not a regular file, or it is of a newer
    version. Its content may be sound.
    """


class MismatchError(DamagedError):
    """A folder holds another trial than the one that is to be trained there."""


class TrialError(EltaTuneError):
    """A training ended without a result."""


class DivergedError(TrialError):
    """The loss is not finite."""


class OutOfMemoryError(TrialError):
    """The device has no memory left."""


def typed(settings: Settings) -> str:
    """Settings of a recipe's fields, as a hint shows them."""
    return " ".join(f"`{name}={_value(value)}`" for name, value in settings.items())


def _value(value: object) -> str:
    return f"[{','.join(f'{item:g}' for item in value)}]" if isinstance(value, list) else f"{value}"


def combined(errors: Sequence[EltaTuneError]) -> EltaTuneError:
    """One error for one or more, each with its own hint; the last hint is what settles all that settings can."""
    first, *others = errors
    if not others:
        return first
    lines = [f"{len(errors)} problems:"]
    settings: dict[str, Setting] = {}
    for error in errors:
        lines += [f"- {error.message}", *([f"  {error.hint}"] if error.hint else [])]
        settings |= error.settings if isinstance(error, DataError) else {}
    hint = f"all of these settings at once: {typed(settings)}" if len(settings) > 1 else None
    return DataError("\n".join(lines), hint, settings)


def plural(count: int, noun: str) -> str:
    """``"1 image"``, ``"2,000 images"``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
