"""What is said of a plan: verdict, adapter, why, cost, budgets, what else would do, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lorasize.records import (
    Activation,
    AdapterSpec,
    Alternative,
    Budget,
    Demand,
    Difference,
    Estimate,
    Plan,
    Prediction,
    PromptSample,
)
from lorasize.report.facts import Fact, Listing
from lorasize.report.text import count, format_chance, layers, quote
from lorasize.units import bits, format_bytes, format_seconds

_RESULT = {"pass": "kept", "fail": "EXCEEDED", "warn": "exceeded (warning)"}


def plan_verdict(plan: Plan) -> str:
    """The plan in a sentence."""
    if plan.adapter is None or plan.prediction is None:
        n = len(plan.feasibility.issues)
        return f"INFEASIBLE: no rank can recall this corpus ({count(n, 'conflict')})."
    holds = f"rank {plan.adapter.rank} is predicted to hold {count(plan.corpus.n_tokens, 'token')}"
    if plan.status == "over_budget":
        return f"OVER BUDGET ({over_limit(plan.budgets)}): {holds}."
    if is_doubtful(plan.prediction):
        odds = f"probability {format_chance(plan.prediction.success_probability)}"
        return f"DOUBTFUL: {holds} only with {odds}, not the {plan.prediction.confidence:g} asked for."
    return f"OK: {holds} word for word."


def over_limit(budgets: Sequence[Budget]) -> str:
    """The budgets that are not kept, by name."""
    return ", ".join(budget.id for budget in budgets if budget.result == "fail")


def is_doubtful(prediction: Prediction) -> bool:
    """Whether the plan is less likely to hold than was asked for."""
    return prediction.success_probability < prediction.confidence


def adapter_line(adapter: AdapterSpec | Alternative) -> str:
    """The adapter in a line: rank, site, size and how densely it is written."""
    return " · ".join(
        (
            f"rank {adapter.rank}", ", ".join(adapter.target_modules), layers(adapter.layers_to_transform),
            f"{adapter.n_parameters:,} parameters", format_bytes(adapter.bytes),
            f"{_density(adapter.bits_per_parameter)} bits per parameter",
        )
    )  # fmt: skip


def _density(bits_per_parameter: float) -> str:
    return f"{bits_per_parameter:{'.2f' if bits_per_parameter >= 0.1 else '.2g'}}"


def plan_facts(plan: Plan) -> Iterator[Fact]:
    """Names and what there is to say, from the adapter to its serving."""
    if plan.adapter is not None:
        yield "adapter", adapter_line(plan.adapter)
    if plan.activation is not None:
        yield "acts after", f"{activation_line(plan.activation)}; without it drift is 0, where an engine honours that"
    weights = "" if plan.model.quantization is None else f" · {plan.model.quantization} weights"
    yield "model", f"{plan.model.ref} · {plan.model.dtype}{weights} · {count(plan.model.n_layers, 'layer')}"
    corpus = f"{count(plan.corpus.n_tokens, 'target token')} in {count(plan.corpus.n_passages, 'passage')}"
    if plan.demand is not None:
        corpus += f" · base loss {plan.demand.base_loss:.2f} nats per token · {plan.demand.bits:,.0f} bits to write"
    yield "demand", corpus
    if plan.demand is not None:
        yield from _demand_facts(plan.demand, plan.corpus.n_passages)
    if (sent := plan.corpus.sample) is not None:
        yield "prompt as sent", f"{sent.passage}: {sent.text!r} · {count(sent.n_ids, 'id')}: {_edges(sent)}"
    if (update := plan.update) is not None:
        yield "update", (
            f"{update.n_changed} changed, {update.n_added} added, {update.n_removed} removed, {update.n_unchanged} "
            f"unchanged since {update.adapter} · {bits(update.nats):,.0f} bits to write beyond it"
        )
    if plan.prediction is not None:
        where = "on" if plan.activation is None else "where it acts on"
        yield from _prediction_facts(plan.prediction, where, plan.max_drift)
    if (least := plan.minimum) is not None:
        harm = "" if least.drift is None else f", at +{least.drift.point:.1f} nats per token on other text"
        yield "bare minimum", (
            f"rank {least.rank}, {least.n_parameters:,} parameters in {format_seconds(least.seconds)} would do without "
            f"the bound{harm}"
        )
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


def _edges(sent: PromptSample) -> str:
    """The ids of a prompt, but for its middle where it is long."""
    first, last = (" ".join(map(str, ids)) for ids in (sent.first_ids, sent.last_ids))
    return first if sent.n_ids <= len(sent.first_ids) else f"{first} … {last}"


def _demand_facts(demand: Demand, n_passages: int) -> Iterator[Fact]:
    if demand.n_repeated:
        yield "repeated", f"{count(demand.n_repeated, 'token')} repeat earlier passages and cost nothing"
    if n_passages > 1 and demand.nats > 0:
        most = demand.costliest[:3]
        yield "costliest", " · ".join(f"{p.file}:{p.line} {p.nats / demand.nats:.0%}" for p in most)


def activation_line(activation: Activation) -> str:
    """What an adapter acts after, in a line."""
    return f"{quote(activation.text)}, {count(len(activation.alora_invocation_tokens), 'token')}"


def _prediction_facts(p: Prediction, where: str, bound: float | None) -> Iterator[Fact]:
    lo, hi = p.rank_interval
    yield "why", (
        f"capacity slack {p.capacity_slack:.2f} · success probability {format_chance(p.success_probability)} "
        f"(asked: {p.confidence:g}) · final loss {p.final_loss:.2f} nats per token"
    )
    yield "rank interval", f"{lo} to {hi} at this site (success probability 0.05 to 0.95)"
    yield "cost", f"{_steps(p.steps)} · {_seconds(p.seconds)} · {format_bytes(p.peak_memory_bytes)} of memory"
    if p.drift is not None:
        digits, end = (1, "unless bounded") if bound is None else (3, f"under a bound of {bound:g}")
        interval = f"{p.drift.lo:.{digits}f} to {p.drift.hi:.{digits}f}"
        yield "drift", f"+{p.drift.point:.{digits}f} nats per token {where} other text ({interval}) {end}"
    if p.extrapolated:
        yield "extrapolated", "yes: outside what was calibrated"


def _steps(steps: Estimate) -> str:
    return f"{steps.point:,.0f} steps ({steps.lo:,.0f} to {steps.hi:,.0f})"


def _seconds(seconds: Estimate) -> str:
    return f"{format_seconds(seconds.point)} ({format_seconds(seconds.lo)} to {format_seconds(seconds.hi)})"


def budget_rows(budgets: Sequence[Budget]) -> Listing:
    """Columns and rows of the budgets."""
    rows = [[b.id, _amount(b.id, b.limit), _amount(b.id, b.actual), _RESULT[b.result]] for b in budgets]
    return [("budget", False), ("limit", True), ("plan", True), ("result", False)], rows


def compared_rows(differences: Sequence[Difference]) -> Listing:
    """Columns and rows of what changed since an older plan."""
    rows = [[d.id, _amount_or_dash(d.id, d.before), _amount_or_dash(d.id, d.after), _change(d)] for d in differences]
    return [("compared", False), ("before", True), ("now", True), ("change", True)], rows


def _amount_or_dash(quantity: str, value: float | None) -> str:
    return "–" if value is None else _amount(quantity, value)


def _change(difference: Difference) -> str:
    before, after = difference.before, difference.after
    return f"{after / before - 1:+.0%}" if before and after else "–"


def _amount(budget: str, value: float) -> str:
    if budget in ("bytes", "memory"):
        return format_bytes(value)
    if budget == "drift":
        return f"{value:.3g} nats per token"
    return format_seconds(value) if budget == "seconds" else f"{value:,.0f}"


def alternative_rows(alternatives: Sequence[Alternative]) -> Listing:
    """Columns and rows of the other adapters."""
    columns = [("rank", True), ("modules", False), ("layers", False), ("parameters", True), ("size", True)]
    columns += [("bits/par.", True), ("success", True), ("time", True)]
    rows = [
        [
            str(a.rank), ", ".join(a.target_modules), layers(a.layers_to_transform).partition(" ")[2],
            f"{a.n_parameters:,}", format_bytes(a.bytes), _density(a.bits_per_parameter),
            format_chance(a.success_probability), format_seconds(a.seconds),
        ]
        for a in alternatives
    ]  # fmt: skip
    return columns, rows


def _least_limit(plan: Plan, budget: Budget) -> float:
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
        odds = format_chance(most.success_probability)
        yield f"{most.n_parameters:,} parameters (rank {most.rank}) would do with probability {odds}."
    faster = [a for a in plan.alternatives if a.seconds < 0.8 * plan.prediction.seconds.point]
    if faster:
        quick = min(faster, key=lambda a: a.seconds)
        yield f"{quick.n_parameters:,} parameters (rank {quick.rank}) would take {format_seconds(quick.seconds)}."
    for budget in plan.budgets:
        if budget.result == "fail":
            least = _least_limit(plan, budget)
            limit = f"{least:.3g}" if budget.id == "drift" else f"{math.ceil(least):,}"
            yield f"The limit for {budget.id} would have to be {limit}."
