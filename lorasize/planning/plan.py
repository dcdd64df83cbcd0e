"""The plan around the choice: prediction, alternatives, budgets, serving, and every warning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lorasize.errors import CalibrationError
from lorasize.law.bounded import bounded_drift, chance_to_keep
from lorasize.law.capacity import capacity_slack
from lorasize.law.drift import predicted_drift
from lorasize.law.form import soft_capped
from lorasize.planning.bounded import (
    CALM_RANK,
    PATIENCE,
    assess_bounded,
    bounded_chance,
    bounded_warnings,
    cautious_bounded,
    law_of,
    require_bounded_modules,
)
from lorasize.planning.budgets import all_kept, budgets
from lorasize.planning.choice import RANKS, Assessment, Candidate, assess_all, cautious_transition, chance, cheapest
from lorasize.planning.request import NO_WISHES, Wishes, Workload
from lorasize.planning.serving import rules_of_thumb, serving
from lorasize.planning.warnings import plan_warnings, range_warnings
from lorasize.records import (
    BATCH_TOKENS,
    AdapterSpec,
    Alternative,
    Calibration,
    CorpusSummary,
    CostModel,
    Demand,
    Feasibility,
    Plan,
    PlanInputs,
    PlanModel,
    Prediction,
    SiteEfficiency,
)

MAX_ALTERNATIVES = 8


def make_plan(
    *,
    calibration: Calibration,
    model: PlanModel,
    corpus: CorpusSummary,
    demand: Demand,
    inputs: PlanInputs,
    work: Workload,
    wishes: Wishes = NO_WISHES,
    at: AdapterSpec | None = None,
    bound: float | None = None,
) -> Plan:
    """The plan for a feasible corpus: adapter, prediction, alternatives, budgets, and every warning.

    Candidates within the limits come first; when none of those reaches the confidence, the limits are broken and the
    status says so. An adapter `at` which to start leaves its site, and ranks that contain it. Under a `bound` on drift,
    nats per token, adapters are those of the calibration's law under one.

    Raises:
        CalibrationError: the module set, the site to start at, or the bound was not calibrated.
        ValueError: a confidence outside (0, 1).
    """
    confidence, here = wishes.confidence, inputs.same_device
    options = _options(calibration, demand, work.n_positions, wishes, at, bound, corpus.n_passages)
    memory = _peak_memory(calibration.cost, work)
    predictions = {a.candidate: predict(calibration, demand, a, memory, confidence, bound) for a in options}
    verdicts = {c: budgets(wishes.limits, c.spec(demand), p, same_device=here) for c, p in predictions.items()}
    # The chance that a tight bound is kept is the same for all, so it does not decide between them.
    wanted = confidence if bound is None else confidence * chance_to_keep(law_of(calibration), bound)
    enough = [a for a in options if all_kept(verdicts[a.candidate]) and a.success_probability >= wanted]
    calm = [a for a in enough if bound is None or a.candidate.rank <= CALM_RANK]
    chosen = cheapest(calm or enough or options, wanted, wishes.minimize, math.inf if bound is None else PATIENCE)
    adapter, prediction = chosen.candidate.spec(demand), predictions[chosen.candidate]
    if chosen.success_probability < confidence and wishes.rank is None and wishes.target_modules is None:
        prediction = prediction.model_copy(update={"extrapolated": True})
    return Plan(
        status="ok" if all_kept(verdicts[chosen.candidate]) else "over_budget",
        model=model,
        corpus=corpus,
        demand=demand,
        feasibility=Feasibility(feasible=True),
        adapter=adapter,
        prediction=prediction,
        alternatives=alternatives(options, chosen, demand, confidence),
        rules_of_thumb=rules_of_thumb(work.linear_parameters_per_rank, corpus.n_tokens),
        budgets=verdicts[chosen.candidate],
        serving=serving(adapter, wishes.serve),
        inputs=inputs,
        warnings=plan_warnings(calibration, demand, chosen, wanted, same_device=here, bound=bound),
        max_drift=bound,
        minimum=None if bound is None else minimum(calibration, demand, work, corpus.n_passages, confidence),
    )


def minimum(
    calibration: Calibration, demand: Demand, work: Workload, n_passages: int, confidence: float
) -> Alternative:
    """The fewest parameters that reach the confidence where nothing bounds drift, and what they do to other text."""
    options = assess_all(calibration, demand, work.n_positions, n_passages=n_passages)
    chosen = cheapest(options, confidence, "parameters")
    return Alternative(
        **chosen.candidate.spec(demand).model_dump(),
        success_probability=chosen.success_probability,
        seconds=chosen.seconds.point,
        drift=predicted_drift(calibration.observations),
    )


def infeasible_plan(*, model: PlanModel, corpus: CorpusSummary, feasibility: Feasibility, inputs: PlanInputs) -> Plan:
    """The plan for a corpus that no rank can hold: nothing was measured, and no adapter searched for."""
    return Plan(
        status="infeasible",
        model=model,
        corpus=corpus,
        demand=None,
        feasibility=feasibility,
        adapter=None,
        prediction=None,
        inputs=inputs,
    )


def predict(
    calibration: Calibration,
    demand: Demand,
    chosen: Assessment,
    memory: int,
    confidence: float,
    bound: float | None,
) -> Prediction:
    """What the law says of this candidate. Losses in nats per target token, the reduction clipped to the base loss."""
    if bound is None:
        interval = rank_interval(calibration, chosen.candidate.calibrated, demand)
        doubts, drift = range_warnings(calibration, demand, chosen), predicted_drift(calibration.observations)
    else:
        law = law_of(calibration)
        transition = cautious_bounded(law, demand, bound)
        interval = _interval(lambda rank: bounded_chance(law, transition, demand, rank))
        doubts, drift = bounded_warnings(calibration, demand, bound), bounded_drift(law, bound)
    reduction = demand.base_loss * max(0.0, soft_capped(chosen.slack))
    return Prediction(
        final_loss=demand.base_loss - reduction,
        loss_reduction=reduction,
        capacity_slack=chosen.slack,
        success_probability=chosen.success_probability,
        confidence=confidence,
        rank_interval=interval,
        steps=chosen.steps,
        seconds=chosen.seconds,
        peak_memory_bytes=memory,
        extrapolated=bool(doubts),
        drift=drift,
    )


def rank_interval(calibration: Calibration, calibrated: SiteEfficiency, demand: Demand) -> tuple[int, int]:
    """The smallest ranks at this site with a chance of 0.05 and of 0.95; the ladder's end where none has it."""
    transition = cautious_transition(calibration, demand)

    def at(rank: int) -> float:
        n = Candidate(calibrated, rank).effective_parameters
        return chance(transition, capacity_slack(calibration.law, n, demand))

    return _interval(at)


def _interval(chance_at: Callable[[int], float]) -> tuple[int, int]:
    """The smallest ranks with a chance of 0.05 and of 0.95; the ladder's end where none has it."""
    lo, hi = (next((r for r in RANKS if chance_at(r) >= p), RANKS[-1]) for p in (0.05, 0.95))
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


def _options(
    calibration: Calibration,
    demand: Demand,
    n_positions: int,
    wishes: Wishes,
    at: AdapterSpec | None,
    bound: float | None,
    n_passages: int,
) -> list[Assessment]:
    """Every candidate that the wishes leave; at the site of an adapter to start from, with ranks no smaller than its.

    Raises:
        CalibrationError: the module set, or the site to start at, was not calibrated.
    """
    if bound is None:
        options = assess_all(
            calibration,
            demand,
            n_positions,
            n_passages=n_passages,
            rank=wishes.rank,
            target_modules=wishes.target_modules,
        )
    else:
        require_bounded_modules(calibration, wishes.target_modules)
        options = assess_bounded(calibration, demand, n_positions, n_passages=n_passages, bound=bound, rank=wishes.rank)
    if at is None:
        return options
    containing = [a for a in options if a.candidate.site == at.site and a.candidate.rank >= at.rank]
    if not containing:
        where = f"{', '.join(at.target_modules)} in layers {', '.join(map(str, at.layers_to_transform))}"
        under = "" if bound is None else " under a bound on drift: plan without one"
        raise CalibrationError(f"The calibration holds no site {where}, or no rank from {at.rank} on there{under}.")
    return containing


def _peak_memory(cost: CostModel, work: Workload) -> int:
    """Bytes at the peak of training: one step, and the state kept for each position of the corpus."""
    step = min(work.n_positions, max(BATCH_TOKENS, work.longest_sequence))
    training = round(cost.memory_base_bytes + cost.memory_overhead_bytes + cost.memory_bytes_per_token * step)
    return training + work.state_bytes * work.n_positions
