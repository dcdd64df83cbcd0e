"""The plan around the choice: prediction, alternatives, budgets, serving, and every warning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorasize.errors import CalibrationError
from lorasize.law import RANGE_TOLERANCE, bent, in_range, predict
from lorasize.planning.choice import (
    RANKS,
    Assessment,
    Candidate,
    assess_all,
    capacity_slack,
    cautious_transition,
    chance,
    cheapest,
    equivalent_tokens,
)
from lorasize.planning.drift import predicted_drift
from lorasize.planning.prior import source_of
from lorasize.records import (
    BATCH_TOKENS,
    AdapterSpec,
    Against,
    Alternative,
    Budget,
    Calibration,
    CorpusSummary,
    CostModel,
    Demand,
    Difference,
    Feasibility,
    Level,
    Minimize,
    Plan,
    PlanInputs,
    PlanModel,
    Prediction,
    RulesOfThumb,
    Serve,
    Serving,
    SiteEfficiency,
)

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM accepts as max_lora_rank
VLLM_DEFAULT_RANK = 16
FLAT_RANK = 16
MAX_ALTERNATIVES = 8

QuantityName = Literal["tokens", "nats", "rank", "parameters", "bytes", "seconds"]


@dataclass(frozen=True)
class Limits:
    """What the adapter may cost; None is no limit. Bytes on disk, seconds of training, bytes of memory.

    Attributes:
        levels: By budget: `off`, `warn`, or `error`, the default.
        against: By budget: `point` estimate, the default, or the `upper` end of its interval, the default of seconds.
    """

    max_rank: int | None = None
    max_parameters: int | None = None
    max_bytes: int | None = None
    max_seconds: float | None = None
    max_memory: int | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    against: Mapping[str, Against] = field(default_factory=dict)


NO_LIMITS = Limits()


# ---------------------------------------------------------------- around one candidate
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


# ---------------------------------------------------------------- what surrounds the choice
def rules_of_thumb(linear_parameters_per_rank: int, n_tokens: int) -> RulesOfThumb:
    """What people use today on all linear layers: the rank at which parameters ≥ target tokens, and a flat 16.

    Source: Tinker's advice on LoRA (parameters ≥ target tokens); 16 is the usual recipe and vLLM's default
    max_lora_rank, while TRL's table "LoRA Without Regret" says 256.
    """
    return RulesOfThumb(
        parameters_ge_tokens_rank=max(1, math.ceil(n_tokens / linear_parameters_per_rank)), flat_rank=FLAT_RANK
    )


def budgets(
    limits: Limits, adapter: AdapterSpec, prediction: Prediction, *, same_device: bool = True
) -> tuple[Budget, ...]:
    """Each limit against the plan. The upper end of rank, parameters and bytes is that of the rank interval.

    Seconds measured on another device only warn.
    """
    most = max(adapter.rank, prediction.rank_interval[1])
    asked: tuple[tuple[str, float | None, float, float], ...] = (
        ("rank", limits.max_rank, adapter.rank, most),
        ("parameters", limits.max_parameters, adapter.n_parameters, adapter.n_parameters * most // adapter.rank),
        ("bytes", limits.max_bytes, adapter.bytes, adapter.bytes * most // adapter.rank),
        ("seconds", limits.max_seconds, prediction.seconds.point, prediction.seconds.hi),
        ("memory", limits.max_memory, prediction.peak_memory_bytes, prediction.peak_memory_bytes),
    )
    found = []
    for name, limit, point, upper in asked:
        level = limits.levels.get(name, "error")
        if limit is None or level == "off":
            continue
        against = limits.against.get(name, "upper" if name == "seconds" else "point")
        warn_only = level == "warn" or (name == "seconds" and not same_device)
        found.append(_budget(name, limit, point if against == "point" else upper, against, warn_only=warn_only))
    return tuple(found)


def _budget(name: str, limit: float, actual: float, against: Against, *, warn_only: bool) -> Budget:
    over: Literal["warn", "fail"] = "warn" if warn_only else "fail"
    return Budget(
        id=name,
        limit=limit,
        actual=actual,
        level="warn" if warn_only else "error",
        result="pass" if actual <= limit else over,
        against=against,
    )


def serving(adapter: AdapterSpec, serve: Serve) -> Serving:
    """What the inference engine must be told. vLLM takes only certain values of max_lora_rank, at most 512."""
    bucket = next((r for r in VLLM_RANKS if r >= adapter.rank), None)
    notes = {
        "peft": "PEFT loads the folder as it is.",
        "vllm": f"Start vLLM with max_lora_rank {bucket} (its default is {VLLM_DEFAULT_RANK}).",
        "llama.cpp": "Convert with llama.cpp's convert_lora_to_gguf.py, then verify recall on the converted file.",
        "merged": "Merging rounds the weights to the base's dtype: apply decodes the merged model.",
    }
    if serve == "vllm" and bucket is None:
        return Serving(
            serve=serve,
            vllm_max_lora_rank=None,
            llama_cpp=True,
            notes=(f"vLLM serves ranks up to {VLLM_RANKS[-1]}: merge the adapter or spread it over more layers.",),
        )
    return Serving(serve=serve, vllm_max_lora_rank=bucket, llama_cpp=True, notes=(notes[serve],))


# ---------------------------------------------------------------- the plan
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


def compare(old: Plan, new: Plan) -> tuple[Difference, ...]:
    """What changed from one plan to another, quantity by quantity; those that stayed are left out."""
    both = zip(_quantities(old).items(), _quantities(new).values(), strict=True)
    return tuple(Difference(id=name, before=was, after=now) for (name, was), now in both if was != now)


def _quantities(plan: Plan) -> dict[QuantityName, float | None]:
    adapter, prediction, demand = plan.adapter, plan.prediction, plan.demand
    return {
        "tokens": plan.corpus.n_tokens,
        "nats": None if demand is None else demand.nats,
        "rank": None if adapter is None else adapter.rank,
        "parameters": None if adapter is None else adapter.n_parameters,
        "bytes": None if adapter is None else adapter.bytes,
        "seconds": None if prediction is None else prediction.seconds.point,
    }


def _kept(verdict: Sequence[Budget]) -> bool:
    return all(b.result != "fail" for b in verdict)


def _peak_memory(cost: CostModel, positions: int) -> int:
    """Bytes at the peak of training with so many positions in a step."""
    return round(cost.memory_base_bytes + cost.memory_overhead_bytes + cost.memory_bytes_per_token * positions)


def predicted(
    calibration: Calibration, demand: Demand, chosen: Assessment, memory: int, confidence: float
) -> Prediction:
    """What the law says of this candidate. Losses in nats per target token, the reduction clipped to the base loss."""
    reduction = demand.base_loss * max(0.0, bent(chosen.slack))
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
