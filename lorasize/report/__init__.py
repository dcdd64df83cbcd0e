"""Records → terminal tables, JSON and GitHub annotations, and progress while a command runs. The only door to rich."""

from __future__ import annotations

import os

from pydantic import BaseModel
from rich.console import RenderableType

from lorasize.records import Calibration, Check, Memorization, Plan, RecallReport
from lorasize.records import to_json as record_json
from lorasize.report.calibration import calibration_table, learned_line
from lorasize.report.junit import junit
from lorasize.report.markdown import markdown
from lorasize.report.plan import check_table, issues_list, plan_table
from lorasize.report.progress import Progress
from lorasize.report.recall import memorization_table, recall_table, side_by_side
from lorasize.report.text import clean, to_text
from lorasize.report.workflow import github, outputs

__all__ = [
    "Progress",
    "calibration_table",
    "check_table",
    "clean",
    "github",
    "issues_list",
    "junit",
    "learned_line",
    "markdown",
    "memorization_table",
    "outputs",
    "plan_table",
    "recall_table",
    "side_by_side",
    "table",
    "to_json",
    "to_text",
]


def table(record: BaseModel) -> RenderableType:
    """The table of any artifact.

    Raises:
        TypeError: there is no table for this kind of record.
    """
    if isinstance(record, Plan):
        return plan_table(record)
    if isinstance(record, Calibration):
        return calibration_table(record)
    if isinstance(record, Memorization):
        return memorization_table(record)
    if isinstance(record, RecallReport):
        return recall_table(record)
    if isinstance(record, Check):
        return check_table(record)
    raise TypeError(f"no table for {type(record).__name__}")


def to_json(record: BaseModel) -> str:
    """The record's one JSON document; in GitHub Actions written so that no corpus text in it reads as a command."""
    text = record_json(record)
    return text.replace("##[", "#\\u0023[") if "GITHUB_ACTIONS" in os.environ else text
