"""The models that `make models` makes: the script that makes them, and a fixture that skips where it has not run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT


def _script() -> Any:
    """benchmarks/support/real_models.py; its folder is another `support`, so it is loaded by its path."""
    spec = importlib.util.spec_from_file_location("real_models", ROOT / "benchmarks" / "support" / "real_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


real_models = _script()
NAMES = tuple(model.name for model in real_models.MODELS)


@pytest.fixture(scope="module", params=NAMES)
def real_model(request: pytest.FixtureRequest) -> Path:
    """The folder of each of them in turn. Tests that take it are marked `models`."""
    model = next(model for model in real_models.MODELS if model.name == request.param)
    if (folder := real_models.made(model)) is None:
        pytest.skip(f"{request.param} is not there: run make models")
    return Path(folder)
