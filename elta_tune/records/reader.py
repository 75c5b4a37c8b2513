"""Typed reading of JSON: a record is what its dataclass says, or an error names its file and field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from elta_tune.documents import RULES, shown
from elta_tune.errors import DamagedError

Record = TypeVar("Record")

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
"""A whole number from 0 on."""
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Integer = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)]
Number = Integer | Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A finite number; a whole one stays whole."""
Scalar = Flag | Number | Text | None
"""The value of a parameter."""

MEANINGS = {
    "dataclass_type": "should be an object",
    "dict_type": "should be an object",
    "list_type": "should be a list",
    "finite_number": "should be a finite number",
    "less_than": "is too large",
    "less_than_equal": "is too large",
} | {name: RULES[name] for name in ("missing", "float_type", "int_type", "bool_type", "string_type", "tuple_type")}
"""What pydantic's kinds of errors mean in a record; of the others its own words are shown."""


ADAPTERS: dict[type, TypeAdapter[Any]] = {}
"""Made when a kind of record is read first."""


def read_record(kind: type[Record], content: object, place: str) -> Record:
    """The record that JSON content describes. Fields that it does not know are ignored.

    Args:
        kind: a dataclass.
        place: file, or file and line, for errors.

    Raises:
        DamagedError: names the first wrong field.
    """
    if kind not in ADAPTERS:
        ADAPTERS[kind] = TypeAdapter(kind)
    try:
        record: Record = ADAPTERS[kind].validate_python(content)
        return record
    except ValidationError as error:
        detail = error.errors()[0]
    name = ".".join(_path(content, detail["loc"])).removeprefix("values.")
    rule = MEANINGS.get(detail["type"]) or detail["msg"].removeprefix("Input ").removeprefix("Value error, ")
    given = detail["input"]
    if detail["type"] != "missing" and isinstance(given, str | int | float | None):
        rule += f", not {_brief(given)}"
    raise DamagedError(f"{place}: is damaged: {f'{name}: ' if name else ''}{rule}")


def _path(content: Any, location: tuple[str | int, ...]) -> list[str]:
    """The parts of a location that are in the content, or missing there: pydantic's also has the members of unions."""
    parts = []
    for part in location:
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            content = content[part]
        else:
            continue
        parts.append(str(part))
    return parts


def _brief(value: str | int | float | None) -> str:
    is_huge = isinstance(value, int) and abs(value) > 10**20
    return "a number of many digits" if is_huge else shown(value)
