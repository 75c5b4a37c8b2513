"""What a study may be called."""

from __future__ import annotations

import pytest

from elta_tune.errors import ConfigError
from elta_tune.studies.request import check_name

GOOD = ["one", "default-ava", "lr 1e-3", "größe", "日本", "v1.2_b", "console", "com", "x" * 200, "3"]
BAD = ["", " ", ".", "..", "-x", "--name", ".hidden", "~", " a", "a ", "a.", "a/b", "a\\b", "a:2", "a?", "a|b", '"a"']
BAD += [
    "a\nb",
    "a\tb",
    "a\x1b[31m",
    "a\u202eb",
    "a\u200bb",
    "\udcff",
    "CON",
    "con",
    "Aux.txt",
    "LPT1",
    "x" * 201,
    "日" * 67,
]


@pytest.mark.parametrize("name", GOOD)
def test_plain_name_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", BAD)
def test_other_name_is_refused_with_one_like_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^`name=") as refused:
        check_name(name)
    assert refused.value.hint is not None
    check_name(refused.value.hint.removeprefix("choose another: `name=").removesuffix("`"))
