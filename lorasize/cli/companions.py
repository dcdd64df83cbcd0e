"""What an HTML page shows beside its record: found only when one is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorasize.report import Companions

if TYPE_CHECKING:
    from pydantic import BaseModel

    from lorasize.records import Calibration, Plan
    from lorasize.verbs.apply import Applied
    from lorasize.verbs.plan import Sized


def of_plan(sized: Sized) -> Companions:
    """The calibration of a plan just made, and its corpus token by token."""
    return replace(_with_ladder(sized.plan, sized.calibration), passages=sized.surprises())


def of_apply(applied: Applied) -> Companions:
    """The steps of an apply just done, and what came back."""
    return Companions(steps=applied.steps, recall=applied.recall)


def of_artifact(path: Path, record: BaseModel) -> Companions:
    """What lies on disk: the calibration a plan names, the events in an adapter folder."""
    from lorasize.artifacts.events import EVENTS, read_steps
    from lorasize.records import Memorization, Plan

    if isinstance(record, Plan):
        return _with_ladder(record, _calibration(record))
    if isinstance(record, Memorization):
        return Companions(steps=read_steps((path if path.is_dir() else path.parent) / EVENTS))
    return Companions()


def _with_ladder(plan: Plan, calibration: Calibration | None) -> Companions:
    """A plan's calibration, and what each rank at its site would do by it."""
    from lorasize.planning import ranks_at_site

    return Companions() if calibration is None else Companions(calibration, ranks_at_site(plan, calibration))


def _calibration(plan: Plan) -> Calibration | None:
    from lorasize.artifacts.calibrations import find_by_digest

    found = find_by_digest(plan.inputs.calibration_sha256)
    return None if found is None else found[0]
