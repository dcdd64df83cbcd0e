"""From law, transition, demand and budget to a plan. Pure arithmetic: no model, no files, no clock.

`choice` finds the adapter; `plan` says what it is predicted to do, what else would do, and where the limits stand;
`drift` what it does to other text; `prior` stands in for a calibration that was not made yet.
"""

from lorasize.law.capacity import capacity_slack, equivalent_tokens
from lorasize.law.drift import predicted_drift
from lorasize.planning.budgets import Limits, budgets
from lorasize.planning.choice import (
    RANKS,
    Assessment,
    Candidate,
    assess,
    assess_all,
    candidates,
    cautious_transition,
    outside,
    step_seconds,
)
from lorasize.planning.compare import compare
from lorasize.planning.plan import alternatives, make_plan, predicted, rank_interval
from lorasize.planning.prior import prior_calibration, source_of
from lorasize.planning.serving import FLAT_RANK, VLLM_RANKS, rules_of_thumb, serving

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
