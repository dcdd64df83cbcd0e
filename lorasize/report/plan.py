"""A plan as a table that reads from the top down: verdict, adapter, why, cost, and what else would do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from lorasize.records import (
    AdapterSpec,
    Alternative,
    Budget,
    Check,
    Demand,
    Estimate,
    FeasibilityIssue,
    Plan,
    Prediction,
)
from lorasize.report.text import chance, counted, facts, label, layers, listing
from lorasize.units import format_bytes, format_seconds

_RESULT = {"pass": "kept", "fail": "EXCEEDED", "warn": "exceeded (warning)"}


def plan_table(plan: Plan) -> Group:
    """Everything the plan says, fit for 80 columns."""
    parts: list[RenderableType] = [_verdict(plan), facts(_facts(plan))]
    if plan.feasibility.issues:
        parts.append(issues_list(plan.feasibility.issues))
    if plan.budgets:
        parts.append(_budgets(plan.budgets))
    if plan.alternatives:
        parts.append(_alternatives(plan.alternatives))
    if plan.warnings:
        parts.append(_notes("Warnings", plan.warnings))
    if changes := list(_changes(plan)):
        parts.append(_notes("What would change it", changes))
    return _spaced(parts)


def check_table(check: Check) -> Group:
    """The verdict on a committed plan, and what it rests on."""
    verdicts = {
        "ok": ("OK: the plan holds, and its budgets are kept.", "bold green"),
        "over_budget": ("OVER BUDGET: " + ", ".join(b.id for b in check.budgets if b.result == "fail"), "bold red"),
        "stale": ("STALE: plan again.", "bold red"),
        "infeasible": ("INFEASIBLE: no rank can recall this corpus.", "bold red"),
    }
    parts: list[RenderableType] = [label(*verdicts[check.status])]
    named = [("plan", check.plan)] + ([("adapter", adapter_line(check.adapter))] if check.adapter is not None else [])
    parts.append(facts(named))
    if check.stale:
        parts.append(_notes("Changed since the plan was made", check.stale))
    if check.feasibility.issues:
        parts.append(issues_list(check.feasibility.issues))
    if check.budgets:
        parts.append(_budgets(check.budgets))
    if check.warnings:
        parts.append(_notes("Warnings", check.warnings))
    return _spaced(parts)


def _spaced(parts: Sequence[RenderableType]) -> Group:
    spaced = [part for pair in zip(parts, [Text()] * len(parts), strict=True) for part in pair]
    return Group(*spaced[:-1])


def _verdict(plan: Plan) -> Text:
    if plan.adapter is None or plan.prediction is None:
        n = len(plan.feasibility.issues)
        return Text(f"INFEASIBLE: no rank can recall this corpus ({counted(n, 'conflict')}).", style="bold red")
    holds = f"rank {plan.adapter.rank} is predicted to hold {counted(plan.corpus.n_tokens, 'token')}"
    if plan.status == "over_budget":
        over = ", ".join(b.id for b in plan.budgets if b.result == "fail")
        return label(f"OVER BUDGET ({over}): {holds}.", "bold red")
    p = plan.prediction
    if p.success_probability < p.confidence:
        odds = f"with probability {chance(p.success_probability)}, not the {p.confidence:g} asked for"
        return label(f"DOUBTFUL: {holds} only {odds}.", "bold yellow")
    return label(f"OK: {holds} word for word.", "bold green")


def adapter_line(adapter: AdapterSpec | Alternative) -> str:
    """The adapter in a line: rank, site, size and how densely it is written."""
    return " · ".join(
        (
            f"rank {adapter.rank}", ", ".join(adapter.target_modules), layers(adapter.layers_to_transform),
            f"{adapter.n_parameters:,} parameters", format_bytes(adapter.bytes),
            f"{adapter.bits_per_parameter:{'.2f' if adapter.bits_per_parameter >= 0.1 else '.2g'}} bits per parameter",
        )
    )  # fmt: skip


def _facts(plan: Plan) -> Iterator[tuple[str, str]]:
    if plan.adapter is not None:
        yield "adapter", adapter_line(plan.adapter)
    yield "model", f"{plan.model.ref} · {plan.model.dtype} · {counted(plan.model.n_layers, 'layer')}"
    corpus = f"{counted(plan.corpus.n_tokens, 'target token')} in {counted(plan.corpus.n_passages, 'passage')}"
    if plan.demand is not None:
        corpus += f" · base loss {plan.demand.base_loss:.2f} nats per token · {plan.demand.bits:,.0f} bits to write"
    yield "demand", corpus
    if plan.demand is not None:
        yield from _where_the_bits_go(plan.demand, plan.corpus.n_passages)
    if plan.prediction is not None:
        yield from _prediction(plan.prediction)
    if (thumbs := plan.rules_of_thumb) is not None:
        yield "rules of thumb", (
            f"parameters ≥ tokens: rank {thumbs.parameters_ge_tokens_rank} · flat: rank {thumbs.flat_rank}; "
            "both on all linear layers"
        )
    if plan.serving is not None:
        rank, notes = plan.serving.vllm_max_lora_rank, list(plan.serving.notes)
        if rank is not None and not any("max_lora_rank" in note for note in notes):
            notes.append(f"vLLM: max_lora_rank {rank}")
        yield "serving", " · ".join(notes)


def _where_the_bits_go(demand: Demand, n_passages: int) -> Iterator[tuple[str, str]]:
    if demand.n_repeated:
        yield "repeated", f"{counted(demand.n_repeated, 'token')} repeat earlier passages and cost nothing"
    if n_passages > 1 and demand.nats > 0:
        most = demand.costliest[:3]
        yield "costliest", " · ".join(f"{p.file}:{p.line} {p.nats / demand.nats:.0%}" for p in most)


def _prediction(p: Prediction) -> Iterator[tuple[str, str]]:
    lo, hi = p.rank_interval
    yield "why", (
        f"capacity slack {p.capacity_slack:.2f} · success probability {chance(p.success_probability)} "
        f"(asked: {p.confidence:g}) · final loss {p.final_loss:.2f} nats per token"
    )
    yield "rank interval", f"{lo} to {hi} at this site (success probability 0.05 to 0.95)"
    yield "cost", f"{_steps(p.steps)} · {_seconds(p.seconds)} · {format_bytes(p.peak_memory_bytes)} of memory"
    if p.extrapolated:
        yield "extrapolated", "yes: outside what was calibrated"


def _steps(steps: Estimate) -> str:
    return f"{steps.point:,.0f} steps ({steps.lo:,.0f} to {steps.hi:,.0f})"


def _seconds(seconds: Estimate) -> str:
    return f"{format_seconds(seconds.point)} ({format_seconds(seconds.lo)} to {format_seconds(seconds.hi)})"


def issues_list(issues: Sequence[FeasibilityIssue]) -> Group:
    """Every conflict by file and line."""
    return Group(*(label(f"{i.file}:{i.line}: {i.message}") for i in issues))


def _budgets(budgets: Sequence[Budget]) -> RenderableType:
    rows = [[b.id, _amount(b.id, b.limit), _amount(b.id, b.actual), _RESULT[b.result]] for b in budgets]
    return listing([("budget", False), ("limit", True), ("plan", True), ("result", False)], rows)


def _amount(budget: str, value: float) -> str:
    if budget in ("bytes", "memory"):
        return format_bytes(value)
    return format_seconds(value) if budget == "seconds" else f"{value:,.0f}"


def _alternatives(alternatives: Sequence[Alternative]) -> RenderableType:
    columns = [("rank", True), ("modules", False), ("layers", False), ("parameters", True), ("size", True)]
    columns += [("bits/par.", True), ("success", True), ("time", True)]
    rows = [
        [
            str(a.rank), ", ".join(a.target_modules), layers(a.layers_to_transform).partition(" ")[2],
            f"{a.n_parameters:,}", format_bytes(a.bytes), f"{a.bits_per_parameter:.2f}", chance(a.success_probability),
            format_seconds(a.seconds),
        ]
        for a in alternatives
    ]  # fmt: skip
    return listing(columns, rows, "Alternatives")


def _notes(title: str, notes: Sequence[str]) -> Group:
    return Group(Text(title, style="bold"), *(Padding(label(f"- {note}"), (0, 0, 0, 2)) for note in notes))


def _changes(plan: Plan) -> Iterator[str]:
    """What the reader could ask for otherwise, each with its price."""
    if plan.adapter is None or plan.prediction is None:
        return
    smaller = [a for a in plan.alternatives if a.n_parameters < plan.adapter.n_parameters]
    if smaller:
        most = max(smaller, key=lambda a: a.success_probability)
        odds = chance(most.success_probability)
        yield f"{most.n_parameters:,} parameters (rank {most.rank}) would do with probability {odds}."
    faster = [a for a in plan.alternatives if a.seconds < 0.8 * plan.prediction.seconds.point]
    if faster:
        quick = min(faster, key=lambda a: a.seconds)
        yield f"{quick.n_parameters:,} parameters (rank {quick.rank}) would take {format_seconds(quick.seconds)}."
    for budget in plan.budgets:
        if budget.result == "fail":
            yield f"The limit for {budget.id} would have to be {math.ceil(budget.actual):,}."
    if plan.prediction.extrapolated:
        yield "A calibration whose probes reach this far would narrow the intervals."
