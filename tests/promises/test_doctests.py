"""The examples in docstrings say what comes back."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from lorasize import units
from lorasize.law import form, transition


@pytest.mark.parametrize("module", [units, form, transition], ids=lambda module: module.__name__)
def test_examples_in_docstrings_come_true(module: ModuleType) -> None:
    outcome = doctest.testmod(module)
    assert outcome.attempted > 0
    assert outcome.failed == 0
