"""JUnit XML, which every CI shows: one case a budget, one a passage, one a reason why a plan does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from pydantic import BaseModel

from lorasize.records import Budget, Check, FeasibilityIssue, Memorization, Plan, RecallFailure, RecallReport
from lorasize.report.text import clean, exact, quoted

Case = tuple[str, str]  # name, and what went wrong; empty when nothing did


def junit(record: BaseModel) -> str:
    """One test suite named after the command; a record without a verdict has one case that passes."""
    name, cases = _suite(record)
    suite = ElementTree.Element("testsuite", name=f"lorasize {name}", tests=str(len(cases)))
    suite.set("failures", str(sum(bool(wrong) for _, wrong in cases)))
    suite.set("errors", "0")
    for title, wrong in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"lorasize.{name}", name=clean(title))
        if wrong:
            ElementTree.SubElement(case, "failure", message=clean(wrong))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(record: BaseModel) -> tuple[str, list[Case]]:
    if isinstance(record, Plan):
        return "plan", [("feasible", _first(record.feasibility.issues)), *_budgets(record.budgets)]
    if isinstance(record, Check):
        stale = "; ".join(record.stale)
        feasible = ("feasible", _first(record.feasibility.issues))
        return "check", [feasible, ("not stale", stale), *_budgets(record.budgets)]
    if isinstance(record, RecallReport):
        return "verify", list(_recall(record))
    if isinstance(record, Memorization):
        met = "" if record.threshold_met else f"{record.n_stubborn} tokens are not above the threshold"
        lost = "; ".join(map(_lost, record.recall.failures))
        broken = record.drift is not None and record.drift.broken
        drift = f"other text lost {record.drift.nats:.3f} nats per token" if record.drift and broken else ""
        cases = [("every token above the threshold", met), ("every passage recalled", lost)]
        return "apply", [*cases, ("other text kept", drift)]
    return "calibrate", [("calibrated", "")]


def _first(issues: tuple[FeasibilityIssue, ...]) -> str:
    return "" if not issues else f"{issues[0].message} ({len(issues)} in all)"


def _budgets(budgets: tuple[Budget, ...]) -> Iterator[Case]:
    for budget in budgets:
        over = f"{exact(budget.actual)}, the limit is {exact(budget.limit)}"
        yield f"budget {budget.id}", over if budget.result == "fail" else ""


def _recall(report: RecallReport) -> Iterator[Case]:
    wrong = {failure.passage: _lost(failure) for failure in report.failures}
    for passage in report.passages:
        yield passage.passage, wrong.get(passage.passage, "" if passage.recalled else "lost")
    if not report.passages:
        yield "every passage", "; ".join(wrong.values())
    yield "every token above the threshold", "" if report.threshold_met else "some token is not"
    yield "files as proven", ", ".join(f"{name} changed" for name in report.changed_files)


def _lost(failure: RecallFailure) -> str:
    expected, got = quoted(failure.expected), quoted(failure.got)
    return f"{failure.passage}: token {failure.position}: expected {expected}, got {got}"
