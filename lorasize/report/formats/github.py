"""Annotations for GitHub Actions: one workflow command a line, escaped by the runner's rules; and a step's outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lorasize.corpus.secrets import named
from lorasize.records import (
    AdapterSpec,
    Budget,
    Check,
    Finding,
    Memorization,
    PassageDemand,
    Plan,
    RecallFailure,
    RecallReport,
)
from lorasize.report.facts.recall import harm_done, mismatch, served_line
from lorasize.report.text import clean, exact

MAX_FINDINGS = 10  # GitHub shows ten warnings of a step


def github(record: BaseModel) -> str:
    """An error or a warning for everything in the record that someone should act on; empty when all is well."""
    annotations_of = _ANNOTATIONS.get(type(record))
    return "" if annotations_of is None else "".join(f"{line}\n" for line in annotations_of(record))


def outputs(record: BaseModel) -> str:
    """Step outputs, one `name=value` a line: the status and, where there is an adapter, its size."""
    outputs_of = _OUTPUTS.get(type(record))
    pairs = {} if outputs_of is None else outputs_of(record)
    return "".join(f"{name}={str(value).lower()}\n" for name, value in pairs.items())


def _plan(plan: Plan) -> Iterator[str]:
    yield from (_command("error", i.message, file=i.file, line=str(i.line)) for i in plan.feasibility.issues)
    yield from _budgets(plan.budgets, plan.demand.costliest if plan.demand is not None else ())
    yield from (_command("warning", warning) for warning in plan.warnings)
    yield from (_finding(finding) for finding in plan.secrets[:MAX_FINDINGS])


def _check(check: Check) -> Iterator[str]:
    yield from (_command("error", i.message, file=i.file, line=str(i.line)) for i in check.feasibility.issues)
    yield from (_command("error", f"{why}: plan again", file=check.plan) for why in check.stale)
    yield from _budgets(check.budgets, check.costliest)
    yield from (_command("warning", warning) for warning in check.warnings)


def _recall(report: RecallReport) -> Iterator[str]:
    yield from (_failure(failure) for failure in report.failures)
    yield from (_command("error", f"{name} changed since the adapter was proven") for name in report.changed_files)
    yield from _threshold(report.threshold_met)
    yield from (_command("warning", warning) for warning in report.warnings)


def _memorization(run: Memorization) -> Iterator[str]:
    yield from (_failure(failure) for failure in run.failures)
    yield from _threshold(run.threshold_met)
    if run.served is not None and not run.served.holds(run.threshold):
        yield _command("error", f"served: {served_line(run.served)}")
    if harm := harm_done(run):
        yield _command("error", f"{harm}, over the bound")


_ANNOTATIONS: dict[type[BaseModel], Callable[[Any], Iterator[str]]] = {
    Plan: _plan,
    Check: _check,
    RecallReport: _recall,
    Memorization: _memorization,
}


def _status_outputs(record: Plan | Check) -> dict[str, object]:
    return {"status": record.status} | _adapter_outputs(record.adapter)


def _recall_outputs(report: RecallReport) -> dict[str, object]:
    return {"recalled": report.recalled, "threshold-met": report.threshold_met}


def _memorization_outputs(run: Memorization) -> dict[str, object]:
    return {"outcome": run.outcome.value, "recalled": run.recalled} | _adapter_outputs(run.adapter)


def _adapter_outputs(adapter: AdapterSpec | None) -> dict[str, object]:
    if adapter is None:
        return {}
    return {"rank": adapter.rank, "parameters": adapter.n_parameters, "bytes": adapter.bytes}


_OUTPUTS: dict[type[BaseModel], Callable[[Any], dict[str, object]]] = {
    Plan: _status_outputs,
    Check: _status_outputs,
    RecallReport: _recall_outputs,
    Memorization: _memorization_outputs,
}


def _budgets(budgets: Sequence[Budget], costliest: Sequence[PassageDemand]) -> list[str]:
    """Budgets that are exceeded, at the line of the passage that costs most."""
    place = {"file": costliest[0].file, "line": str(costliest[0].line)} if costliest else {}
    most = " (the passage here costs most)" if costliest else ""
    return [
        _command(
            "error" if budget.result == "fail" else "warning",
            f"{budget.id}: {exact(budget.actual)}, the limit is {exact(budget.limit)}{most}",
            **place,
        )
        for budget in budgets
        if budget.result != "pass"
    ]


def _finding(finding: Finding) -> str:
    seen = f"this line seems to hold {named(finding.kind)}; the adapter will make it extractable"
    return _command("warning", seen, file=finding.file, line=str(finding.line))


def _failure(failure: RecallFailure) -> str:
    return _command("error", f"{failure.passage} is lost: {mismatch(failure)}")


def _threshold(met: bool) -> list[str]:
    return [] if met else [_command("error", "some target token is not above the threshold")]


def _command(level: str, message: str, **properties: str) -> str:
    """One workflow command. In properties, colons and commas are escaped as well."""
    if "file" in properties:
        properties["file"] = _in_workspace(properties["file"])
    pairs = [f"{k}={_escape(v).replace(':', '%3A').replace(',', '%2C')}" for k, v in properties.items()]
    return f"::{level} {','.join(['title=lorasize', *pairs])}::{_escape(clean(message))}"


def _in_workspace(file: str) -> str:
    """The file as GitHub knows it: relative to the checkout, whichever folder the command ran in."""
    workspace, path = os.environ.get("GITHUB_WORKSPACE"), Path(os.path.abspath(file))
    return path.relative_to(workspace).as_posix() if workspace and path.is_relative_to(workspace) else file


def _escape(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
