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
    Difference,
    Estimate,
    FeasibilityIssue,
    Plan,
    Prediction,
)
from lorasize.report.text import chance, counted, facts, label, layers, listing
from lorasize.units import bits, format_bytes, format_seconds

_RESULT = {"pass": "kept", "fail": "EXCEEDED", "warn": "exceeded (warning)"}


def plan_table(plan: Plan) -> Group:
    """Everything the plan says, fit for 80 columns."""
    parts: list[RenderableType] = [label(plan_verdict(plan), _style(plan)), facts(plan_facts(plan))]
    if plan.feasibility.issues:
        parts.append(issues_list(plan.feasibility.issues))
    if plan.budgets:
        parts.append(listing(*budget_rows(plan.budgets)))
    if plan.compared:
        parts.append(listing(*compared_rows(plan.compared)))
    if plan.alternatives:
        parts.append(listing(*alternative_rows(plan.alternatives), "Alternatives"))
    if plan.warnings:
        parts.append(_notes("Warnings", plan.warnings))
    if changes := list(plan_changes(plan)):
        parts.append(_notes("What would change it", changes))
    return _spaced(parts)


def check_table(check: Check) -> Group:
    """The verdict on a committed plan, and what it rests on."""
    parts: list[RenderableType] = [label(check_verdict(check), "bold green" if check.status == "ok" else "bold red")]
    named = [("plan", check.plan)] + ([("adapter", adapter_line(check.adapter))] if check.adapter is not None else [])
    parts.append(facts(named))
    if check.stale:
        parts.append(_notes("Changed since the plan was made", check.stale))
    if check.feasibility.issues:
        parts.append(issues_list(check.feasibility.issues))
    if check.budgets:
        parts.append(listing(*budget_rows(check.budgets)))
    if check.warnings:
        parts.append(_notes("Warnings", check.warnings))
    return _spaced(parts)


def check_verdict(check: Check) -> str:
    """The verdict in a sentence."""
    return {
        "ok": "OK: the plan holds, and its budgets are kept.",
        "over_budget": f"OVER BUDGET: {', '.join(b.id for b in check.budgets if b.result == 'fail')}.",
        "stale": "STALE: plan again.",
        "infeasible": "INFEASIBLE: no rank can recall this corpus.",
    }[check.status]


def _spaced(parts: Sequence[RenderableType]) -> Group:
    spaced = [part for pair in zip(parts, [Text()] * len(parts), strict=True) for part in pair]
    return Group(*spaced[:-1])


def plan_verdict(plan: Plan) -> str:
    """The plan in a sentence."""
    if plan.adapter is None or plan.prediction is None:
        n = len(plan.feasibility.issues)
        return f"INFEASIBLE: no rank can recall this corpus ({counted(n, 'conflict')})."
    holds = f"rank {plan.adapter.rank} is predicted to hold {counted(plan.corpus.n_tokens, 'token')}"
    if plan.status == "over_budget":
        over = ", ".join(b.id for b in plan.budgets if b.result == "fail")
        return f"OVER BUDGET ({over}): {holds}."
    if _doubtful(plan.prediction):
        odds = f"probability {chance(plan.prediction.success_probability)}"
        return f"DOUBTFUL: {holds} only with {odds}, not the {plan.prediction.confidence:g} asked for."
    return f"OK: {holds} word for word."


def _doubtful(prediction: Prediction) -> bool:
    return prediction.success_probability < prediction.confidence


def _style(plan: Plan) -> str:
    if plan.status != "ok" or plan.prediction is None:
        return "bold red"
    return "bold yellow" if _doubtful(plan.prediction) else "bold green"


def adapter_line(adapter: AdapterSpec | Alternative) -> str:
    """The adapter in a line: rank, site, size and how densely it is written."""
    return " · ".join(
        (
            f"rank {adapter.rank}", ", ".join(adapter.target_modules), layers(adapter.layers_to_transform),
            f"{adapter.n_parameters:,} parameters", format_bytes(adapter.bytes),
            f"{adapter.bits_per_parameter:{'.2f' if adapter.bits_per_parameter >= 0.1 else '.2g'}} bits per parameter",
        )
    )  # fmt: skip


def plan_facts(plan: Plan) -> Iterator[tuple[str, str]]:
    """Names and what there is to say, from the adapter to its serving."""
    if plan.adapter is not None:
        yield "adapter", adapter_line(plan.adapter)
    yield "model", f"{plan.model.ref} · {plan.model.dtype} · {counted(plan.model.n_layers, 'layer')}"
    corpus = f"{counted(plan.corpus.n_tokens, 'target token')} in {counted(plan.corpus.n_passages, 'passage')}"
    if plan.demand is not None:
        corpus += f" · base loss {plan.demand.base_loss:.2f} nats per token · {plan.demand.bits:,.0f} bits to write"
    yield "demand", corpus
    if plan.demand is not None:
        yield from _where_the_bits_go(plan.demand, plan.corpus.n_passages)
    if (update := plan.update) is not None:
        yield "update", (
            f"{update.n_changed} changed, {update.n_added} added, {update.n_removed} removed, {update.n_unchanged} "
            f"unchanged since {update.adapter} · {bits(update.nats):,.0f} bits to write beyond it"
        )
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
    if p.drift is not None:
        interval = f"{p.drift.lo:.1f} to {p.drift.hi:.1f}"
        yield "drift", f"+{p.drift.point:.1f} nats per token on other text ({interval}) unless bounded"
    if p.extrapolated:
        yield "extrapolated", "yes: outside what was calibrated"


def _steps(steps: Estimate) -> str:
    return f"{steps.point:,.0f} steps ({steps.lo:,.0f} to {steps.hi:,.0f})"


def _seconds(seconds: Estimate) -> str:
    return f"{format_seconds(seconds.point)} ({format_seconds(seconds.lo)} to {format_seconds(seconds.hi)})"


def issues_list(issues: Sequence[FeasibilityIssue]) -> Group:
    """Every conflict by file and line."""
    return Group(*(label(f"{i.file}:{i.line}: {i.message}") for i in issues))


Listing = tuple[list[tuple[str, bool]], list[list[str]]]


def budget_rows(budgets: Sequence[Budget]) -> Listing:
    """Columns and rows of the budgets."""
    rows = [[b.id, _amount(b.id, b.limit), _amount(b.id, b.actual), _RESULT[b.result]] for b in budgets]
    return [("budget", False), ("limit", True), ("plan", True), ("result", False)], rows


def compared_rows(differences: Sequence[Difference]) -> Listing:
    """Columns and rows of what changed since an older plan."""
    rows = [[d.id, _known(d.id, d.before), _known(d.id, d.after), _share(d)] for d in differences]
    return [("compared", False), ("before", True), ("now", True), ("change", True)], rows


def _known(quantity: str, value: float | None) -> str:
    return "–" if value is None else _amount(quantity, value)


def _share(difference: Difference) -> str:
    before, after = difference.before, difference.after
    return f"{after / before - 1:+.0%}" if before and after else "–"


def _amount(budget: str, value: float) -> str:
    if budget in ("bytes", "memory"):
        return format_bytes(value)
    return format_seconds(value) if budget == "seconds" else f"{value:,.0f}"


def alternative_rows(alternatives: Sequence[Alternative]) -> Listing:
    """Columns and rows of the other adapters."""
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
    return columns, rows


def _notes(title: str, notes: Sequence[str]) -> Group:
    return Group(Text(title, style="bold"), *(Padding(label(f"- {note}"), (0, 0, 0, 2)) for note in notes))


def _enough(plan: Plan, budget: Budget) -> float:
    """The least limit that an adapter of this plan keeps which reaches the confidence."""
    assert plan.prediction is not None
    able = [a for a in plan.alternatives if a.success_probability >= plan.prediction.confidence]
    sizes = [{"rank": a.rank, "parameters": a.n_parameters, "bytes": a.bytes}.get(budget.id) for a in able]
    return min([budget.actual, *(size for size in sizes if size is not None and budget.against == "point")])


def plan_changes(plan: Plan) -> Iterator[str]:
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
            yield f"The limit for {budget.id} would have to be {math.ceil(_enough(plan, budget)):,}."
