"""What each rank at a plan's site would do: the ladder that a report shows beside the plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lorasize.planning.bounded import assess_bounded
from lorasize.planning.choice import RANKS, Assessment, assess_all
from lorasize.records import Calibration, Plan


def ranks_at_site(plan: Plan, calibration: Calibration) -> list[Assessment]:
    """Each rank at the chosen site, up to two beyond the chosen one and the rank interval; none without an adapter."""
    if plan.adapter is None or plan.prediction is None or plan.demand is None:
        return []
    n_positions = plan.corpus.n_positions or plan.corpus.n_tokens
    if plan.max_drift is not None and calibration.bounded is None:
        return []
    n_passages = plan.corpus.n_passages
    assess: Callable[..., list[Assessment]] = partial(assess_all, n_passages=n_passages)
    if plan.max_drift is not None:
        assess = partial(assess_bounded, n_passages=n_passages, bound=plan.max_drift)
    ladder = assess(calibration, plan.demand, n_positions)
    if plan.adapter.rank not in {a.candidate.rank for a in ladder}:
        ladder += assess(calibration, plan.demand, n_positions, rank=plan.adapter.rank)
    here = [a for a in ladder if a.candidate.site == plan.adapter.site]
    most = max(plan.adapter.rank, plan.prediction.rank_interval[1])
    beyond = [rank for rank in RANKS if rank > most][:2]
    highest = beyond[-1] if beyond else most
    return [a for a in sorted(here, key=lambda a: a.candidate.rank) if a.candidate.rank <= highest]
