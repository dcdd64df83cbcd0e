"""Records as one HTML file each: no script, nothing loaded from outside, light and dark, readable on a phone.

`page` holds the parts a page is made of, `figures` turns matplotlib's figures into SVG of the page's colours, and
`plan`, `calibration` and `run` say what is shown of which record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from lorasize.records import Calibration, Check, Memorization, Plan, RecallReport
from lorasize.report.companions import Companions
from lorasize.report.formats.html.calibration import calibration_page
from lorasize.report.formats.html.page import Page, render
from lorasize.report.formats.html.plan import plan_page
from lorasize.report.formats.html.run import check_page, memorization_page, recall_page


def to_html(record: BaseModel, companions: Companions) -> str:
    """The record's page.

    Raises:
        TypeError: there is no page for this kind of record.
    """
    page_of = _PAGES.get(type(record))
    if page_of is None:
        raise TypeError(f"no page for {type(record).__name__}")
    return render(page_of(record, companions))


_PAGES: dict[type[BaseModel], Callable[[Any, Companions], Page]] = {
    Plan: lambda plan, companions: plan_page(plan, companions.calibration, companions.ladder, companions.passages),
    Calibration: lambda calibration, _: calibration_page(calibration),
    Memorization: lambda run, companions: memorization_page(run, companions.steps, companions.recall),
    RecallReport: lambda report, _: recall_page(report),
    Check: lambda check, _: check_page(check),
}
