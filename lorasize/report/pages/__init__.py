"""Records as one HTML file each: no script, nothing loaded from outside, light and dark, readable on a phone.

`page` holds the parts a page is made of, `figures` turns matplotlib's figures into SVG of the page's colours, and
`plan`, `calibration` and `run` say what is shown of which record.
"""

from __future__ import annotations

from pydantic import BaseModel

from lorasize.records import Calibration, Check, Memorization, Plan, RecallReport
from lorasize.report.beside import Beside
from lorasize.report.pages.calibration import calibration_page
from lorasize.report.pages.page import Page, render
from lorasize.report.pages.plan import plan_page
from lorasize.report.pages.run import check_page, memorization_page, recall_page


def to_html(record: BaseModel, beside: Beside) -> str:
    """The record's page.

    Raises:
        TypeError: there is no page for this kind of record.
    """
    return render(_page(record, beside))


def _page(record: BaseModel, beside: Beside) -> Page:
    if isinstance(record, Plan):
        return plan_page(record, beside.calibration, beside.ladder, beside.passages)
    if isinstance(record, Calibration):
        return calibration_page(record)
    if isinstance(record, Memorization):
        return memorization_page(record, beside.steps, beside.recall)
    if isinstance(record, RecallReport):
        return recall_page(record)
    if isinstance(record, Check):
        return check_page(record)
    raise TypeError(f"no page for {type(record).__name__}")
