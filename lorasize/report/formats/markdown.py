"""Markdown for a job summary or a comment: the verdict, the facts and the tables, with every text escaped."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from lorasize.records import Calibration, Check, Memorization, Plan, RecallReport
from lorasize.report.facts.calibration import calibration_facts, site_rows
from lorasize.report.facts.check import check_verdict
from lorasize.report.facts.plan import alternative_rows, budget_rows, compared_rows, plan_facts, plan_verdict
from lorasize.report.facts.recall import (
    decoding_line,
    memorization_facts,
    memorization_verdict,
    passage_rows,
    recall_verdict,
    smallest,
)
from lorasize.report.text import clean

MAX_SUMMARY_BYTES = 900_000  # GitHub takes a summary of 1 MiB
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~<>@&:-])")

Columns = Sequence[tuple[str, bool]]
Rows = Iterable[Sequence[str]]


def markdown(record: BaseModel) -> str:
    """The record's report, shorter than a megabyte: what does not fit is cut off with a word saying so."""
    text = "\n".join(_lines(record)) + "\n"
    data = text.encode()
    if len(data) <= MAX_SUMMARY_BYTES:
        return text
    start = data[:MAX_SUMMARY_BYTES].decode(errors="ignore").rpartition("\n")[0]
    return f"{start}\n\n*Cut off here: the whole report is longer.*\n"


def escape(text: str) -> str:
    """The text on one line, shown as it is: no mark-up, no HTML, no mention, no link."""
    return _MARKS.sub(r"\\\1", clean(text)).replace("\\<", "&lt;").replace("\\&", "&amp;").replace("\\@", "&#64;")


def _lines(record: BaseModel) -> Iterator[str]:
    lines_of = _LINES.get(type(record))
    if lines_of is None:
        raise TypeError(f"no report for {type(record).__name__}")
    yield from lines_of(record)


def _plan(plan: Plan) -> Iterator[str]:
    yield from _head(plan_verdict(plan), plan_facts(plan))
    yield from _bullets([i.message for i in plan.feasibility.issues])
    yield from _table(*budget_rows(plan.budgets))
    yield from _table(*compared_rows(plan.compared))
    yield from _table(*alternative_rows(plan.alternatives), title="Alternatives")
    yield from _bullets(plan.warnings)


def _check(check: Check) -> Iterator[str]:
    yield from _head(check_verdict(check), [("plan", check.plan)])
    yield from _bullets([*check.stale, *(i.message for i in check.feasibility.issues)])
    yield from _table(*budget_rows(check.budgets))
    yield from _bullets(check.warnings)


def _recall(report: RecallReport) -> Iterator[str]:
    yield from _head(recall_verdict(report), [])
    yield from _bullets([f"changed since it was proven: {name}" for name in report.changed_files])
    yield from _table(*passage_rows(report))
    yield from _bullets([*report.warnings, *filter(None, (smallest(report), decoding_line(report)))])


def _memorization(run: Memorization) -> Iterator[str]:
    yield from _head(memorization_verdict(run), memorization_facts(run))


def _calibration(calibration: Calibration) -> Iterator[str]:
    yield from _head(f"Calibration of {calibration.model.ref}", calibration_facts(calibration))
    yield from _table(*site_rows(calibration), title="Sites")


_LINES: dict[type[BaseModel], Callable[[Any], Iterator[str]]] = {
    Plan: _plan,
    Check: _check,
    RecallReport: _recall,
    Memorization: _memorization,
    Calibration: _calibration,
}


def _head(verdict: str, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"### {escape(verdict)}"
    rows = [pair for pair in facts if pair[1]]
    yield from _table([("", False), ("", False)], rows)


def _bullets(messages: Sequence[str]) -> Iterator[str]:
    if messages:
        yield ""
        yield from (f"- {escape(message)}" for message in messages)


def _table(columns: Columns, rows: Rows, title: str = "") -> Iterator[str]:
    listed = [" | ".join(map(escape, row)) for row in rows]
    if not listed:
        return
    yield ""
    if title:
        yield f"**{title}**\n"
    yield f"| {' | '.join(escape(name) for name, _ in columns)} |"
    yield f"| {' | '.join('--:' if number else '---' for _, number in columns)} |"
    yield from (f"| {row} |" for row in listed)
