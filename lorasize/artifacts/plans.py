"""Plans on disk."""

from __future__ import annotations

from pathlib import Path

from lorasize.artifacts.files import write_text
from lorasize.artifacts.records import read_record
from lorasize.errors import LorasizeError
from lorasize.records import Plan, to_json


def read_plan(path: Path) -> Plan:
    """The plan in this file.

    Raises:
        LorasizeError: missing, over 50 MB, not JSON, of another schema, or with values that are none. The root class,
            as an unreadable plan is an input error and neither stale nor a calibration's fault.
    """
    return read_record(path, Plan, "lorasize.plan", LorasizeError)


def write_plan(plan: Plan, path: Path) -> None:
    """Put the plan at `path` whole or not at all, folders included."""
    write_text(to_json(plan), path)
