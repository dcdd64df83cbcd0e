"""Annotations for GitHub Actions: one workflow command a line, escaped by the runner's rules."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from lorasize.corpus.secrets import named
from lorasize.records import Budget, Check, Finding, Memorization, PassageDemand, Plan, RecallFailure, RecallReport
from lorasize.report.text import clean, exact, quoted

MAX_FINDINGS = 10  # GitHub shows ten warnings of a step


def github(record: BaseModel) -> str:
    """An error or a warning for everything in the record that someone should act on; empty when all is well."""
    lines: list[str] = []
    if isinstance(record, Plan):
        lines = _plan(record)
    elif isinstance(record, Check):
        lines = _check(record)
    elif isinstance(record, RecallReport):
        lines = [_failure(failure) for failure in record.failures]
        lines += [_command("error", f"{name} changed since the adapter was proven") for name in record.changed_files]
        lines += _threshold(record.threshold_met)
        lines += [_command("warning", warning) for warning in record.warnings]
    elif isinstance(record, Memorization):
        lines = [_failure(failure) for failure in record.recall.failures] + _threshold(record.threshold_met)
        if record.drift is not None and record.drift.broken:
            lines.append(_command("error", f"other text lost {record.drift.nats:.3f} nats per token, over the bound"))
    return "".join(f"{line}\n" for line in lines)


def outputs(record: BaseModel) -> str:
    """Step outputs, one `name=value` a line: the status and, where there is an adapter, its size."""
    pairs: dict[str, object] = {}
    adapter = None
    if isinstance(record, Plan | Check):
        pairs["status"], adapter = record.status, record.adapter
    elif isinstance(record, RecallReport):
        pairs = {"recalled": record.recalled, "threshold-met": record.threshold_met}
    elif isinstance(record, Memorization):
        pairs, adapter = {"outcome": record.outcome.value, "recalled": record.recalled}, record.adapter
    if adapter is not None:
        pairs |= {"rank": adapter.rank, "parameters": adapter.n_parameters, "bytes": adapter.bytes}
    return "".join(f"{name}={str(value).lower()}\n" for name, value in pairs.items())


def _plan(plan: Plan) -> list[str]:
    lines = [_command("error", i.message, file=i.file, line=str(i.line)) for i in plan.feasibility.issues]
    lines += _exceeded(plan.budgets, plan.demand.costliest if plan.demand is not None else ())
    lines += [_command("warning", warning) for warning in plan.warnings]
    return lines + [_finding(finding) for finding in plan.secrets[:MAX_FINDINGS]]


def _check(check: Check) -> list[str]:
    lines = [_command("error", i.message, file=i.file, line=str(i.line)) for i in check.feasibility.issues]
    lines += [_command("error", f"{why}: plan again", file=check.plan) for why in check.stale]
    return lines + _exceeded(check.budgets, check.costliest) + [_command("warning", w) for w in check.warnings]


def _exceeded(budgets: Sequence[Budget], costliest: Sequence[PassageDemand]) -> list[str]:
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
    expected, got = quoted(failure.expected), quoted(failure.got)
    return _command("error", f"{failure.passage} is lost at token {failure.position}: expected {expected}, got {got}")


def _threshold(met: bool) -> list[str]:
    return [] if met else [_command("error", "some target token is not above the threshold")]


def _command(level: str, message: str, **properties: str) -> str:
    """One workflow command. In properties, colons and commas are escaped as well."""
    if "file" in properties:
        properties["file"] = _in_workspace(properties["file"])
    pairs = [f"{k}={_escaped(v).replace(':', '%3A').replace(',', '%2C')}" for k, v in properties.items()]
    return f"::{level} {','.join(['title=lorasize', *pairs])}::{_escaped(clean(message))}"


def _in_workspace(file: str) -> str:
    """The file as GitHub knows it: relative to the checkout, whichever folder the command ran in."""
    workspace, path = os.environ.get("GITHUB_WORKSPACE"), Path(os.path.abspath(file))
    return path.relative_to(workspace).as_posix() if workspace and path.is_relative_to(workspace) else file


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
