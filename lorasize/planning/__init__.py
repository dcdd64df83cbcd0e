"""From law, transition, demand and budget to a plan. Pure arithmetic: no model, no files, no clock.

`request` is what is asked; `choice` finds the adapter; `plan` says what it is predicted to do, what else would do, and
where the limits stand; `prior` stands in for a calibration that was not made yet, and `elsewhere` takes seconds to
another device.
"""

from lorasize.planning.budgets import Limits, all_kept, budgets, judged_again
from lorasize.planning.choice import (
    RANKS,
    Assessment,
    Candidate,
    assess,
    assess_all,
    candidates,
    cautious_transition,
    e_folds_out_of_range,
    step_seconds,
)
from lorasize.planning.compare import compare
from lorasize.planning.elsewhere import scaled_from, scaled_seconds, with_rough_seconds
from lorasize.planning.ladder import ranks_at_site
from lorasize.planning.plan import alternatives, infeasible_plan, make_plan, predict, rank_interval
from lorasize.planning.prior import moved_law, prior_calibration, source_of
from lorasize.planning.request import Wishes, Workload
from lorasize.planning.serving import FLAT_RANK, VLLM_RANKS, rules_of_thumb, serving

__all__ = [
    "FLAT_RANK",
    "RANKS",
    "VLLM_RANKS",
    "Assessment",
    "Candidate",
    "Limits",
    "Wishes",
    "Workload",
    "all_kept",
    "alternatives",
    "assess",
    "assess_all",
    "budgets",
    "candidates",
    "cautious_transition",
    "compare",
    "e_folds_out_of_range",
    "infeasible_plan",
    "judged_again",
    "make_plan",
    "moved_law",
    "predict",
    "prior_calibration",
    "rank_interval",
    "ranks_at_site",
    "rules_of_thumb",
    "scaled_from",
    "scaled_seconds",
    "serving",
    "source_of",
    "step_seconds",
    "with_rough_seconds",
]
