"""Suggestions for unknown names: synonyms first, then similar spelling."""

import pytest

from elta_tune.config import FIELDS
from elta_tune.method.metrics import DIRECTIONS
from elta_tune.suggestions import SYNONYMS, did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("Spearman", DIRECTIONS, "srcc"),
        ("PLLC", DIRECTIONS, "plcc"),
        ("gpu", ["cpu", "cuda:0", "mps"], "cuda:0"),
        ("AdamW8", ["adam", "adamw", "sgd"], "adamw"),
        ("asha", ["median", "successive_halving"], "successive_halving"),
        ("log_uniform", ["float", "int", "categorical"], "float with log: true"),
        ("Max", ["maximize", "minimize"], "maximize"),
        ("xyz", DIRECTIONS, None),
        ("", DIRECTIONS, None),
    ],
)
def test_did_you_mean(name, known, expected):
    assert did_you_mean(name, known) == (f" — did you mean {expected!r}?" if expected else "")


def test_synonyms_of_a_recipe_name_fields_that_exist():
    sections = {name.partition(".")[0] for name in FIELDS}
    fields = {name for name in SYNONYMS if "." in name and " " not in name and name.partition(".")[0] in sections}
    assert len(fields) > 30
    assert fields <= set(FIELDS)
