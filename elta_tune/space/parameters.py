"""One dimension of a search space: a field's range, and the conditions under which it exists."""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Protocol

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from elta_tune.documents import Section, field_error, read_value, shown

Get = Callable[[str], Any]

MOST_STEPS = 1_000_000

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "in": lambda value, options: value in options,
}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("should be a finite number")
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError("should be a number, text, true, false or null")
    return value


Value = bool | int | float | str | None
"""The value of a parameter."""
Params = dict[str, Value]
"""The parameters of a trial, by the dotted names of their fields and in the order of the space."""
Choice = Annotated[Value, BeforeValidator(_plain)]


class Suggester(Protocol):
    """What a back end's trial can do (Optuna's `Trial` as it is)."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number between two bounds."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer between two bounds."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of some values."""
        ...


@dataclass(frozen=True)
class Condition:
    """`field operator value`, e.g. ``self_training.rounds > 0``."""

    field: str
    operator: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Reads ``field operator value``.

        Raises:
            ValueError: it is none.
        """
        found = re.fullmatch(r"\s*([\w.]+)\s*(>=|<=|==|!=|>|<|\bin\b)\s*(.+?)\s*", text)
        if not found:
            raise ValueError("should look like `self_training.rounds > 0`")
        value = read_value(found[3])
        if isinstance(value, list) != (found[2] == "in"):
            raise ValueError("`in` needs a list, as in `optim.name in [adam, adamw]`, and no other operator takes one")
        return cls(found[1], found[2], value)

    def holds(self, value: Any) -> bool:
        """Whether the field's value fulfils it."""
        try:
            return OPERATORS[self.operator](value, self.value)
        except TypeError:  # null is neither above nor below anything
            return False


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Conditional(Section):
    """What all kinds of parameters share."""

    when: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = ()
    """Conditions that must all hold for the parameter to exist, e.g. `self_training.rounds > 0`."""

    @field_validator("when")
    @classmethod
    def _readable(cls, when: tuple[str, ...]) -> tuple[str, ...]:
        for text in when:
            Condition.parse(text)
        return when

    @property
    def conditions(self) -> list[Condition]:
        """`when`, read."""
        return [Condition.parse(text) for text in self.when]

    def is_active(self, get: Get) -> bool:
        """Whether the parameter exists, given the values of other fields."""
        return all(condition.holds(get(condition.field)) for condition in self.conditions)

    def _suffix(self) -> str:
        return f"  when {' and '.join(self.when)}" if self.when else ""


class FloatParameter(Conditional):
    """A real number between two bounds, both inclusive."""

    type: Literal["float"]
    low: float
    high: float
    """`0.2x` is a fifth of the recipe's value, here and in `low`."""
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _range(self) -> FloatParameter:
        _check_range(self.low, self.high, self.step, self.log)
        return self

    def suggest(self, trial: Suggester, name: str) -> float:
        """Asks a trial for a value."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range: its ends and an odd point, or step, between."""
        between = self.step or 0.382 * (self.high - self.low)
        return list(dict.fromkeys([self.low, self.low + between, self.high]))

    def boundary_values(self, marks: Iterable[Any]) -> list[Any]:
        """Values of which at least one is on either side of each mark, and between any two."""
        points = sorted({self.low, self.high, *(mark for mark in marks if self.contains(mark))})
        return points + [(low + high) / 2 for low, high in itertools.pairwise(points)]

    def key(self, value: Any) -> float:
        """The value, or its step's number: sums of steps differ by rounding."""
        return float(value) if self.step is None else float(round((value - self.low) / self.step))

    @property
    def count(self) -> int | None:
        """How many values there are; None where they can't be counted."""
        if self.step is None:
            return 1 if self.low == self.high else None
        return round((self.high - self.low) / self.step) + 1

    def grid(self) -> list[Any]:
        """All values, where they can be counted."""
        low, step = _decimal(self.low), _decimal(self.step or 0)
        return [float(low + index * step) for index in range(self.count or 0)]

    def __str__(self) -> str:
        by = " (log)" if self.log else f" by {self.step:g}" if self.step else ""
        return f"{self.low:g} … {self.high:g}{by}{self._suffix()}"


class IntParameter(Conditional):
    """An integer between two bounds, both inclusive."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _range(self) -> IntParameter:
        _check_range(self.low, self.high, None if self.step == 1 else self.step, self.log)
        return self

    def suggest(self, trial: Suggester, name: str) -> int:
        """Asks a trial for a value."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return float(value).is_integer() and int(value) in self.grid()

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range."""
        return [self.low, self.high]

    def boundary_values(self, marks: Iterable[Any]) -> range:
        """All values."""
        return self.grid()

    def key(self, value: Any) -> int:
        """The value."""
        return int(value)

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.grid())

    def grid(self) -> range:
        """All values."""
        return range(self.low, self.high + 1, self.step)

    def __str__(self) -> str:
        by = " (log)" if self.log else f" by {self.step}" if self.step != 1 else ""
        return f"{self.low} … {self.high}{by}{self._suffix()}"


class CategoricalParameter(Conditional):
    """One of some values; null is one too."""

    type: Literal["categorical"]
    choices: Annotated[tuple[Choice, ...], Field(min_length=1)]

    def suggest(self, trial: Suggester, name: str) -> Any:
        """Asks a trial for a value."""
        return trial.suggest_categorical(name, self.choices)

    def contains(self, value: Any) -> bool:
        """Whether a trial may have the value."""
        return value in self.choices

    def probes(self) -> list[Any]:
        """Values that show whether the field takes all of the range."""
        return list(self.choices)

    def boundary_values(self, marks: Iterable[Any]) -> list[Any]:
        """All values."""
        return list(self.choices)

    def key(self, value: Any) -> Any:
        """The value."""
        return value

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self.choices)

    def grid(self) -> list[Any]:
        """All values."""
        return list(self.choices)

    def __str__(self) -> str:
        return ", ".join(map(_brief, self.choices)) + self._suffix()


def _brief(choice: Any) -> str:
    if isinstance(choice, str):
        return choice
    return f"{choice:g}" if isinstance(choice, float) else shown(choice)


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


Parameter = Annotated[
    Annotated[FloatParameter, Tag("float")]
    | Annotated[IntParameter, Tag("int")]
    | Annotated[CategoricalParameter, Tag("categorical")],
    Discriminator(
        _kind,
        custom_error_type="kind",
        custom_error_message="type should be float, int or categorical",
        custom_error_context={"options": ["float", "int", "categorical"]},
    ),
]


def _decimal(value: float) -> Decimal:
    """The number as it is written: 0.1 + 2 · 0.1 is 0.3."""
    return Decimal(repr(value))


def _check_range(low: float, high: float, step: float | None, log: bool) -> None:
    if low > high:
        raise field_error("low", f"should be at most high ({high:g}), not {low:g}")
    if log and low <= 0:
        raise field_error("low", f"should be above 0 on a log scale, not {low:g}")
    if log and step is not None:
        raise field_error("step", "log and step exclude each other")
    if step is not None and (high - low) / step > MOST_STEPS:
        raise field_error("step", f"steps of {step:g} from {low:g} to {high:g} are too many")
    if step is not None and (_decimal(high) - _decimal(low)) % _decimal(step):
        raise field_error("step", f"steps of {step:g} from {low:g} do not reach {high:g}")
