"""The plan around the choice: prediction, alternatives, budgets, serving, and every warning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lorasize.errors import CalibrationError
from lorasize.law.capacity import capacity_slack, equivalent_tokens
from lorasize.law.drift import predicted_drift
from lorasize.law.form import RANGE_TOLERANCE, in_range, predict, soft_capped
from lorasize.planning.budgets import NO_LIMITS, Limits, _kept, budgets
from lorasize.planning.choice import RANKS, Assessment, Candidate, assess_all, cautious_transition, chance, cheapest
from lorasize.planning.prior import source_of
from lorasize.planning.serving import rules_of_thumb, serving
from lorasize.records import (
    BATCH_TOKENS,
    AdapterSpec,
    Alternative,
    Calibration,
    CorpusSummary,
    CostModel,
    Demand,
    Feasibility,
    Minimize,
    Plan,
    PlanInputs,
    PlanModel,
    Prediction,
    Serve,
    SiteEfficiency,
)

MAX_ALTERNATIVES = 8


def rank_interval(calibration: Calibration, site: SiteEfficiency, demand: Demand) -> tuple[int, int]:
    """The smallest ranks at this site with a chance of 0.05 and of 0.95; the ladder's end where none has it."""
    transition = cautious_transition(calibration, demand)

    def at(rank: int) -> float:
        n = Candidate(site, rank).effective_parameters
        return chance(transition, capacity_slack(calibration.law, n, demand))

    lo, hi = (next((r for r in RANKS if at(r) >= p), RANKS[-1]) for p in (0.05, 0.95))
    return lo, max(lo, hi)


def alternatives(
    options: Sequence[Assessment], chosen: Assessment, demand: Demand, confidence: float
) -> tuple[Alternative, ...]:
    """At most eight other adapters, by parameters, that no other beats in parameters, seconds and chance at once.

    Chances below half the confidence are left out, and compared in per cent: nobody trades an adapter for the third
    decimal. A longer front is thinned evenly.
    """
    worth = [a for a in options if a.success_probability >= 0.5 * confidence]
    front = [a for a in worth if a != chosen and not any(_beats(b, a) for b in worth)]
    front.sort(key=lambda a: (a.candidate.n_parameters, a.seconds.point))
    if len(front) > MAX_ALTERNATIVES:
        front = [front[round(i * (len(front) - 1) / (MAX_ALTERNATIVES - 1))] for i in range(MAX_ALTERNATIVES)]
    return tuple(
        Alternative(
            **a.candidate.spec(demand).model_dump(),
            success_probability=a.success_probability,
            seconds=a.seconds.point,
        )
        for a in front
    )


def _beats(one: Assessment, other: Assessment) -> bool:
    mine, theirs = ((a.candidate.n_parameters, a.seconds.point, -round(a.success_probability, 2)) for a in (one, other))
    return mine != theirs and all(m <= t for m, t in zip(mine, theirs, strict=True))


def make_plan(
    *,
    calibration: Calibration,
    model: PlanModel,
    corpus: CorpusSummary,
    demand: Demand | None,
    feasibility: Feasibility,
    inputs: PlanInputs,
    n_sequence_tokens: int,
    linear_parameters_per_rank: int,
    longest_sequence: int = 0,
    state_bytes: int = 0,
    confidence: float = 0.9,
    minimize: Minimize = "parameters",
    rank: int | None = None,
    target_modules: Sequence[str] | None = None,
    at: AdapterSpec | None = None,
    limits: Limits = NO_LIMITS,
    serve: Serve = "peft",
) -> Plan:
    """The plan: adapter, prediction, alternatives, budgets, and every warning. An infeasible corpus gets no search.

    Candidates within the limits come first; when none of those reaches the confidence, the limits are broken and the
    status says so. An adapter `at` which to start leaves its site, and ranks that contain it. Memory is that of one
    step, with a state of `state_bytes` kept for each position of the corpus.

    Raises:
        CalibrationError: the module set, or the site to start at, was not calibrated.
        ValueError: a feasible corpus without demand, or a confidence outside (0, 1).
    """
    frame: dict[str, Any] = {
        "model": model, "corpus": corpus, "demand": demand, "feasibility": feasibility, "inputs": inputs,
        "rules_of_thumb": rules_of_thumb(linear_parameters_per_rank, corpus.n_tokens),
    }  # fmt: skip
    if not feasibility.feasible:
        return Plan(**frame, status="infeasible", adapter=None, prediction=None)
    if demand is None:
        raise ValueError("a feasible corpus needs its demand measured before it can be planned for")
    options = assess_all(calibration, demand, n_sequence_tokens, rank=rank, target_modules=target_modules)
    options = options if at is None else _containing(options, at)
    step = min(n_sequence_tokens, max(BATCH_TOKENS, longest_sequence))
    memory = _peak_memory(calibration.cost, step) + state_bytes * n_sequence_tokens
    predictions = {a.candidate: predicted(calibration, demand, a, memory, confidence) for a in options}
    here = inputs.same_device
    verdicts = {c: budgets(limits, c.spec(demand), p, same_device=here) for c, p in predictions.items()}
    kept = [a for a in options if _kept(verdicts[a.candidate]) and a.success_probability >= confidence]
    chosen = cheapest(kept or options, confidence, minimize)
    adapter, prediction = chosen.candidate.spec(demand), predictions[chosen.candidate]
    if chosen.success_probability < confidence and rank is None and target_modules is None:
        prediction = prediction.model_copy(update={"extrapolated": True})
    return Plan(
        **frame,
        status="ok" if _kept(verdicts[chosen.candidate]) else "over_budget",
        adapter=adapter,
        prediction=prediction,
        alternatives=alternatives(options, chosen, demand, confidence),
        budgets=verdicts[chosen.candidate],
        serving=serving(adapter, serve),
        warnings=_warnings(calibration, demand, chosen, confidence, here),
    )


def _containing(options: Sequence[Assessment], at: AdapterSpec) -> list[Assessment]:
    """Those at the site of an adapter, with ranks no smaller than its own."""
    here = (at.target_modules, at.layers_to_transform)
    found = [a for a in options if (a.candidate.site.target_modules, a.candidate.site.layers_to_transform) == here]
    kept = [a for a in found if a.candidate.rank >= at.rank]
    if not kept:
        where = f"{', '.join(at.target_modules)} in layers {', '.join(map(str, at.layers_to_transform))}"
        raise CalibrationError(f"The calibration holds no site {where}, or no rank from {at.rank} on there.")
    return kept


def _peak_memory(cost: CostModel, positions: int) -> int:
    """Bytes at the peak of training with so many positions in a step."""
    return round(cost.memory_base_bytes + cost.memory_overhead_bytes + cost.memory_bytes_per_token * positions)


def predicted(
    calibration: Calibration, demand: Demand, chosen: Assessment, memory: int, confidence: float
) -> Prediction:
    """What the law says of this candidate. Losses in nats per target token, the reduction clipped to the base loss."""
    reduction = demand.base_loss * max(0.0, soft_capped(chosen.slack))
    return Prediction(
        final_loss=demand.base_loss - reduction,
        loss_reduction=reduction,
        capacity_slack=chosen.slack,
        success_probability=chosen.success_probability,
        confidence=confidence,
        rank_interval=rank_interval(calibration, chosen.candidate.site, demand),
        steps=chosen.steps,
        seconds=chosen.seconds,
        peak_memory_bytes=memory,
        extrapolated=bool(_range_warnings(calibration, demand, chosen)),
        drift=predicted_drift(calibration.observations),
    )


def _most_slack(calibration: Calibration) -> float:
    """The largest slack any probe of the calibration had; infinite when no observation is kept."""
    efficiency = {(s.target_modules, s.layers_to_transform): s.efficiency for s in calibration.sites}
    law, seen = calibration.law, [math.inf] if not calibration.observations else []
    for o in calibration.observations:
        worth = efficiency.get((o.probe.target_modules, o.probe.layers_to_transform), 1.0)
        tokens = max(1.0, o.nats / law.reference_loss)
        seen.append(predict(law, o.n_parameters * worth, tokens) / law.reference_loss)
    return max(seen)


def _range_warnings(calibration: Calibration, demand: Demand, chosen: Assessment) -> list[str]:
    """Why the choice is extrapolated: empty when law and transition were both calibrated around it."""
    law, tokens = calibration.law, equivalent_tokens(calibration.law, demand)
    found = []
    if source := source_of(calibration):
        found.append(
            f"Not calibrated: these figures are those of {source}, moved over to this model with a wide interval. "
            f"Run `lorasize calibrate` on {calibration.model.ref} in {calibration.dtype} for its own."
        )
    if not in_range(law, chosen.candidate.effective_parameters, tokens):
        (n_lo, n_hi), (l_lo, l_hi) = law.parameters_range, law.tokens_range
        beyond = chosen.candidate.effective_parameters > n_hi * RANGE_TOLERANCE or tokens > l_hi * RANGE_TOLERANCE
        rough = "Read size, steps and seconds as rough." if beyond else "Smaller than that is easier; times are rough."
        found.append(
            f"Extrapolated: calibrated for {n_lo:,.0f} to {n_hi:,.0f} effective parameters and corpora like "
            f"{l_lo:,.0f} to {l_hi:,.0f} random tokens; asked for {chosen.candidate.effective_parameters:,.0f} and "
            f"{tokens:,.0f}. {rough}"
        )
    most = _most_slack(calibration)
    if chosen.slack > most * RANGE_TOLERANCE:
        found.append(
            f"Extrapolated: capacity slack {chosen.slack:.2f}, while no probe had more than {most:.2f}; "
            "recall is likely, steps and seconds are rough."
        )
    return found


def _warnings(
    calibration: Calibration, demand: Demand, chosen: Assessment, confidence: float, same_device: bool
) -> tuple[str, ...]:
    found = _range_warnings(calibration, demand, chosen)
    if chosen.success_probability < confidence:
        found.append(
            f"No adapter searched reaches confidence {confidence:g}: this one has the most capacity and is predicted "
            f"to succeed with probability {chosen.success_probability:.2f}."
        )
    if not same_device:
        found.append(f"Times were measured on {calibration.device}, not on the plan's device: they are rough.")
    return tuple(found)
