"""Inputs and outputs of the released ELTA code, as the tests of this folder read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "method_vectors.json").read_text())


def _float32(value: Any) -> Any:
    return torch.tensor(value, dtype=torch.float32) if isinstance(value, list) else value


@pytest.fixture(params=VECTORS["method"], ids=lambda case: f"seed{case['seed']}")
def released(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A batch and a pool as float32 tensors; `expected` stays as written."""
    case = request.param
    return {key: case[key] if key == "expected" else _float32(case[key]) for key in case}


@pytest.fixture(params=VECTORS["metrics"], ids=lambda case: f"{len(case['gt'])}images")
def released_metrics(request: pytest.FixtureRequest) -> dict[str, Any]:
    case = request.param
    return {"true": np.array(case["gt"]), "predicted": np.array(case["pred"]), "expected": case["expected"]}
