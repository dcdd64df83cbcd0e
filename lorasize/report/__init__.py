"""Records → terminal tables, JSON, JUnit, Markdown, GitHub annotations and HTML, and progress while a command runs.

The only door to rich, matplotlib and jinja2; the latter two are loaded when an HTML page is asked for.
"""

from __future__ import annotations

from pydantic import BaseModel

from lorasize.errors import LorasizeError
from lorasize.report.companions import Companions
from lorasize.report.facts.calibration import learned_line
from lorasize.report.formats.github import github, outputs
from lorasize.report.formats.json import to_json
from lorasize.report.formats.junit import junit
from lorasize.report.formats.markdown import markdown
from lorasize.report.formats.table import (
    calibration_table,
    check_table,
    config_table,
    issues_list,
    memorization_table,
    plan_table,
    recall_table,
    side_by_side,
    table,
)
from lorasize.report.progress import Progress
from lorasize.report.terminal import to_text
from lorasize.report.text import clean

__all__ = [
    "Companions",
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


def html(record: BaseModel, companions: Companions | None = None) -> str:
    """The record as one self-contained HTML page, with what stands beside it where that is at hand.

    Raises:
        LorasizeError: matplotlib or jinja2 is not installed.
    """
    try:
        from lorasize.report.formats.html import to_html
    except ModuleNotFoundError as error:
        raise LorasizeError(f"HTML needs {error.name}: pip install 'lorasize[report]'") from None
    return to_html(record, companions or Companions())
