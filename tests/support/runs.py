"""Runs that are killed, and what they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasize.artifacts import adapter_folder
from lorasize.records import StepReport


class Killed(BaseException):
    """Stands for a kill: nothing of the session runs after it."""


class Interrupted(Exception):
    """Stands for a kill."""


def killed_at(step: int) -> Callable[[Any], None]:
    def listen(event: Any) -> None:
        if isinstance(event, StepReport) and event.step >= step:
            raise Killed

    return listen


def same_adapter(torch: Any, one: Path, other: Path) -> bool:
    from safetensors.torch import load_file

    a, b = load_file(one / adapter_folder.WEIGHTS), load_file(other / adapter_folder.WEIGHTS)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a checkpoint after every epoch."""
    from lorasize.training import run as session

    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(session, "CHECKPOINT_SHARE", 0.0)
