"""JUnit XML, which every CI shows: one case a budget, one a passage, one a reason why a plan does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

from pydantic import BaseModel

from lorasize.records import (
    WORST_KIND,
    Budget,
    Check,
    FeasibilityIssue,
    Memorization,
    Plan,
    RecallFailure,
    RecallReport,
)
from lorasize.report.facts.recall import harm_done, mismatch, served_line
from lorasize.report.text import clean, exact

Case = tuple[str, str]  # name, and what went wrong; empty when nothing did


def junit(record: BaseModel) -> str:
    """One test suite named after the command; a record without a verdict has one case that passes."""
    name, cases_of = _SUITES.get(type(record), _CALIBRATE)
    cases = list(cases_of(record))
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


def _plan_cases(plan: Plan) -> Iterator[Case]:
    yield "feasible", _first(plan.feasibility.issues)
    yield from _budget_cases(plan.budgets)


def _check_cases(check: Check) -> Iterator[Case]:
    yield "feasible", _first(check.feasibility.issues)
    yield "not stale", "; ".join(check.stale)
    yield from _budget_cases(check.budgets)


def _recall_cases(report: RecallReport) -> Iterator[Case]:
    wrong = {failure.passage: _mismatch(failure) for failure in report.failures}
    for passage in report.passages:
        yield passage.passage, wrong.get(passage.passage, "" if passage.recalled else "lost")
    if not report.passages:
        yield "every passage", "; ".join(wrong.values())
    yield "every token above the threshold", "" if report.threshold_met else "some token is not"
    yield "files as proven", ", ".join(f"{name} changed" for name in report.changed_files)


def _memorization_cases(run: Memorization) -> Iterator[Case]:
    above = "" if run.threshold_met else f"{run.n_stubborn} tokens are not above the threshold"
    yield "every token above the threshold", above
    yield "every passage recalled", "; ".join(map(_mismatch, run.failures))
    if run.served is not None:
        yield "recalled where it is served", "" if run.served.holds(run.threshold) else served_line(run.served)
    yield "other text kept", harm_done(run)
    drift = run.drift
    if drift is not None and drift.bound is not None:
        for one in drift.texts:
            most = WORST_KIND * drift.bound
            over = one.divergence > most and one is not drift.own
            yield f"other text kept: {one.kind}", f"KL {one.divergence:.4f}, at most {most:g} asked" if over else ""


_CALIBRATE: tuple[str, Callable[[Any], Iterable[Case]]] = "calibrate", lambda _: [("calibrated", "")]
_SUITES: dict[type[BaseModel], tuple[str, Callable[[Any], Iterable[Case]]]] = {
    Plan: ("plan", _plan_cases),
    Check: ("check", _check_cases),
    RecallReport: ("verify", _recall_cases),
    Memorization: ("apply", _memorization_cases),
}


def _first(issues: tuple[FeasibilityIssue, ...]) -> str:
    return "" if not issues else f"{issues[0].message} ({len(issues)} in all)"


def _budget_cases(budgets: tuple[Budget, ...]) -> Iterator[Case]:
    for budget in budgets:
        over = f"{exact(budget.actual)}, the limit is {exact(budget.limit)}"
        yield f"budget {budget.id}", over if budget.result == "fail" else ""


def _mismatch(failure: RecallFailure) -> str:
    return f"{failure.passage}: {mismatch(failure)}"
