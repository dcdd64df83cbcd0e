"""Records → terminal tables, JSON, JUnit, Markdown, GitHub annotations and HTML, and progress while a command runs.

The only door to rich, matplotlib and jinja2; the latter two are loaded when an HTML page is asked for.
"""

from __future__ import annotations

import os

from pydantic import BaseModel
from rich.console import RenderableType

from lorasize.errors import LorasizeError
from lorasize.records import Calibration, Check, Config, Memorization, Plan, RecallReport
from lorasize.records import to_json as record_json
from lorasize.report.beside import Beside
from lorasize.report.calibration import calibration_table, learned_line
from lorasize.report.config import config_table
from lorasize.report.junit import junit
from lorasize.report.markdown import markdown
from lorasize.report.plan import check_table, issues_list, plan_table
from lorasize.report.progress import Progress
from lorasize.report.recall import memorization_table, recall_table, side_by_side
from lorasize.report.text import clean, to_text
from lorasize.report.workflow import github, outputs

__all__ = [
    "Beside",
    "Progress",
    "calibration_table",
    "check_table",
    "clean",
    "config_table",
    "github",
    "html",
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
    if isinstance(record, Config):
        return config_table(record)
    raise TypeError(f"no table for {type(record).__name__}")


def to_json(record: BaseModel) -> str:
    """The record's one JSON document; in GitHub Actions written so that no corpus text in it reads as a command."""
    text = record_json(record)
    return text.replace("##[", "#\\u0023[") if "GITHUB_ACTIONS" in os.environ else text


def html(record: BaseModel, beside: Beside | None = None) -> str:
    """The record as one self-contained HTML page, with what stands beside it where that is at hand.

    Raises:
        LorasizeError: matplotlib or jinja2 is not installed.
    """
    try:
        from lorasize.report.pages import to_html
    except ModuleNotFoundError as error:
        raise LorasizeError(f"HTML needs {error.name}: pip install 'lorasize[report]'") from None
    return to_html(record, beside or Beside())
