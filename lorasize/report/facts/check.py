"""What is said of a check: its verdict, and the plan that it is about."""

from __future__ import annotations

from collections.abc import Iterator

from lorasize.records import Check
from lorasize.report.facts import Fact
from lorasize.report.facts.plan import adapter_line, over_limit


def check_verdict(check: Check) -> str:
    """The verdict in a sentence."""
    return {
        "ok": "OK: the plan holds, and its budgets are kept.",
        "over_budget": f"OVER BUDGET: {over_limit(check.budgets)}.",
        "stale": "STALE: plan again.",
        "infeasible": "INFEASIBLE: no rank can recall this corpus.",
    }[check.status]


def check_facts(check: Check) -> Iterator[Fact]:
    """The plan's file, and its adapter where it has one."""
    yield "plan", check.plan
    if check.adapter is not None:
        yield "adapter", adapter_line(check.adapter)
