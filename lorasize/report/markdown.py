"""Markdown for a job summary or a comment: the verdict, the facts and the tables, with every text escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from lorasize.records import Calibration, Check, Memorization, Plan, RecallReport
from lorasize.report.calibration import calibration_facts, site_rows
from lorasize.report.plan import alternative_rows, budget_rows, check_verdict, compared_rows, plan_facts, plan_verdict
from lorasize.report.recall import (
    decoded_with,
    memorization_facts,
    memorization_verdict,
    passage_rows,
    recall_verdict,
    smallest,
)
from lorasize.report.text import clean

MAX_BYTES = 900_000  # GitHub takes a summary of 1 MiB
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~<>@&:-])")

Columns = Sequence[tuple[str, bool]]
Rows = Iterable[Sequence[str]]


def markdown(record: BaseModel) -> str:
    """The record's report, shorter than a megabyte: what does not fit is cut off with a word saying so."""
    text = "\n".join(_lines(record)) + "\n"
    data = text.encode()
    if len(data) <= MAX_BYTES:
        return text
    kept = data[:MAX_BYTES].decode(errors="ignore").rpartition("\n")[0]
    return f"{kept}\n\n*Cut off here: the whole report is longer.*\n"


def escaped(text: str) -> str:
    """The text on one line, shown as it is: no mark-up, no HTML, no mention, no link."""
    return _MARKS.sub(r"\\\1", clean(text)).replace("\\<", "&lt;").replace("\\&", "&amp;").replace("\\@", "&#64;")


def _lines(record: BaseModel) -> Iterator[str]:
    if isinstance(record, Plan):
        yield from _head(plan_verdict(record), plan_facts(record))
        yield from _issues([i.message for i in record.feasibility.issues])
        yield from _table(*budget_rows(record.budgets))
        yield from _table(*compared_rows(record.compared))
        yield from _table(*alternative_rows(record.alternatives), title="Alternatives")
        yield from _issues(record.warnings)
    elif isinstance(record, Check):
        yield from _head(check_verdict(record), [("plan", record.plan)])
        yield from _issues([*record.stale, *(i.message for i in record.feasibility.issues)])
        yield from _table(*budget_rows(record.budgets))
        yield from _issues(record.warnings)
    elif isinstance(record, RecallReport):
        yield from _head(recall_verdict(record), [])
        yield from _issues([f"changed since it was proven: {name}" for name in record.changed_files])
        yield from _table(*passage_rows(record))
        yield from _issues([*record.warnings, *filter(None, (smallest(record), decoded_with(record)))])
    elif isinstance(record, Memorization):
        yield from _head(memorization_verdict(record), memorization_facts(record))
    elif isinstance(record, Calibration):
        yield from _head(f"Calibration of {record.model.ref}", calibration_facts(record))
        yield from _table(*site_rows(record), title="Sites")
    else:
        raise TypeError(f"no report for {type(record).__name__}")


def _head(verdict: str, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f"### {escaped(verdict)}"
    rows = [pair for pair in facts if pair[1]]
    yield from _table([("", False), ("", False)], rows)


def _issues(messages: Sequence[str]) -> Iterator[str]:
    if messages:
        yield ""
        yield from (f"- {escaped(message)}" for message in messages)


def _table(columns: Columns, rows: Rows, title: str = "") -> Iterator[str]:
    listed = [" | ".join(map(escaped, row)) for row in rows]
    if not listed:
        return
    yield ""
    if title:
        yield f"**{title}**\n"
    yield f"| {' | '.join(escaped(name) for name, _ in columns)} |"
    yield f"| {' | '.join('--:' if number else '---' for _, number in columns)} |"
    yield from (f"| {row} |" for row in listed)
