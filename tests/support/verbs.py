"""Verbs replaced by records, and the empty folder that a command is tried in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import records as made

from lorasize import records as r
from lorasize.artifacts.calibrations import write_calibration

Recorded = dict[str, Any]


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and no setting from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name in ("GITHUB_ACTIONS", "NO_COLOR", "FORCE_COLOR") or (
            name.startswith("LORASIZE_") and name != "LORASIZE_CACHE"
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    """`planned(plan)` makes the verb plan return it; what the verb was asked is kept."""

    def replace(plan: r.Plan | Exception) -> Recorded:
        asked: Recorded = {}

        def verb(corpus: Any, **arguments: Any) -> Any:
            asked.update(arguments, corpus=corpus)
            if isinstance(plan, Exception):
                raise plan
            from lorasize.verbs.plan import Sized

            return Sized(plan, ())

        monkeypatch.setattr("lorasize.verbs.plan.plan", verb)
        return asked

    return replace


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    """`applied(memorization, observation)` makes the verb apply return them, or raise."""

    def replace(result: r.Memorization | BaseException, observation: r.Observation | None = None) -> Recorded:
        asked: Recorded = {}

        def verb(plan: r.Plan, out: Path, how: Any, notify: Any, engine: Any = None) -> Any:
            asked.update(plan=plan, out=out, how=how, engine=engine)
            if isinstance(result, BaseException):
                raise result
            notify(made.step(1))
            from lorasize.verbs.apply import Applied

            return Applied(result, made.recall(), (), Path("adapter"), observation=observation)

        monkeypatch.setattr("lorasize.verbs.apply.apply", verb)
        return asked

    return replace


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    asked: Recorded = {}

    def verb(ref: str, *, folder: Path, **arguments: Any) -> tuple[r.Calibration, Path]:
        asked.update(arguments, ref=ref, folder=folder)
        path = folder / "tiny.cpu.float32.json"
        write_calibration(made.calibration(), path)
        return made.calibration(), path

    monkeypatch.setattr("lorasize.verbs.calibrate.calibrate", verb)
    return asked
