"""From law, transition, demand and budget to a plan. Pure arithmetic: no model, no files, no clock.

`choice` finds the adapter; `plan` says what it is predicted to do, what else would do, and where the limits stand;
`drift` what it does to other text; `prior` stands in for a calibration that was not made yet.
"""

from lorasize.planning.choice import (
    RANKS,
    Assessment,
    Candidate,
    assess,
    assess_all,
    candidates,
    capacity_slack,
    cautious_transition,
    equivalent_tokens,
    outside,
    step_seconds,
)
from lorasize.planning.drift import predicted_drift
from lorasize.planning.plan import (
    FLAT_RANK,
    VLLM_RANKS,
    Limits,
    alternatives,
    budgets,
    compare,
    make_plan,
    predicted,
    rank_interval,
    rules_of_thumb,
    serving,
)
from lorasize.planning.prior import prior_calibration, source_of

__all__ = [
    "FLAT_RANK",
    "RANKS",
    "VLLM_RANKS",
    "Assessment",
    "Candidate",
    "Limits",
    "alternatives",
    "assess",
    "assess_all",
    "budgets",
    "candidates",
    "capacity_slack",
    "cautious_transition",
    "compare",
    "equivalent_tokens",
    "make_plan",
    "outside",
    "predicted",
    "predicted_drift",
    "prior_calibration",
    "rank_interval",
    "rules_of_thumb",
    "serving",
    "source_of",
    "step_seconds",
]
