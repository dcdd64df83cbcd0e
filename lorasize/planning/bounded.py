"""Adapters under a bound on drift: one site, every rank, assessed against one corpus by the law of that bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lorasize.errors import CalibrationError
from lorasize.law.bounded import bounded_corpus_steps, bounded_slack, bounded_transition, chance_to_keep
from lorasize.law.form import RANGE_TOLERANCE
from lorasize.planning.choice import DISTANCE_SD, RANKS, Assessment, Candidate, assess_at, chance
from lorasize.planning.prior import SOURCE
from lorasize.records import BOUNDED_STEP_TOKENS, BoundedLaw, Calibration, Demand, Estimate, SiteEfficiency, Transition

PATIENCE = 1.05  # times the fastest's seconds that a smaller one may take: docs/decisions/0012-a-bound-on-harm.md
CALM_RANK = 64  # up to which the demo's harm was undone soon: docs/log/harm.md#larger-ranks-under-the-bound
LEAST_RANK = 4  # below it some kinds of text move by more than the bound: docs/log/harm.md#a-bound-on-drift


def law_of(calibration: Calibration) -> BoundedLaw:
    """The calibration's law under a bound.

    Raises:
        CalibrationError: it has none.
    """
    if calibration.bounded is None:
        raise CalibrationError(
            "The calibration knows nothing of adapters under a bound on drift: add probes under one to it, or plan "
            "without a bound."
        )
    return calibration.bounded


def require_bounded_modules(calibration: Calibration, target_modules: Sequence[str] | None) -> None:
    """Refuse modules that adapters under a bound do not sit on.

    Raises:
        CalibrationError: they are others, or the calibration has no law under a bound.
    """
    known = law_of(calibration).target_modules
    if target_modules is not None and set(target_modules) != set(known):
        raise CalibrationError(
            f"Under a bound on drift adapters sit on {'+'.join(known)}, not on {'+'.join(target_modules)}: plan "
            "without a bound, or let them sit there."
        )


def bounded_efficiency(law: BoundedLaw) -> SiteEfficiency:
    """The site of that law, as others are recorded."""
    return SiteEfficiency(
        target_modules=law.target_modules,
        layers_to_transform=law.layers_to_transform,
        efficiency=1.0,
        stderr=0.0,
        parameters_per_rank=law.parameters_per_rank,
    )


def bounded_candidates(law: BoundedLaw, rank: int | None = None) -> list[Candidate]:
    """Every rank of the ladder from LEAST_RANK on; an explicit rank leaves only itself."""
    site = bounded_efficiency(law)
    return [Candidate(site, r) for r in ((r for r in RANKS if r >= LEAST_RANK) if rank is None else (rank,))]


def cautious_bounded(law: BoundedLaw, demand: Demand, bound: float) -> Transition:
    """The law's transition for this corpus, its location less certain the further its nats or its bound are beyond."""
    distance = max(0.0, math.log(max(demand.nats, 1.0) / (law.nats_range[1] * RANGE_TOLERANCE)))
    distance += max(0.0, math.log(law.max_drift / bound))
    stderr = law.transition.location_stderr * (1.0 + distance) + DISTANCE_SD * distance
    return bounded_transition(law, bound).model_copy(update={"location_stderr": stderr})


def assess_bounded(
    calibration: Calibration,
    demand: Demand,
    n_positions: int,
    *,
    n_passages: int,
    bound: float,
    rank: int | None = None,
) -> list[Assessment]:
    """Every rank assessed for a corpus of so many passages under this bound; an explicit rank leaves only itself.

    Raises:
        CalibrationError: the calibration has no law under a bound.
    """
    law = law_of(calibration)
    transition = cautious_bounded(law, demand, bound)
    seen, factor = [], bounded_corpus_steps(n_passages)
    for candidate in bounded_candidates(law, rank):
        slack = bounded_slack(candidate.n_parameters, demand.nats, law.parameters_per_nat)
        seen.append(assess_at(candidate, slack, calibration, transition, n_positions, factor, BOUNDED_STEP_TOKENS))
    kept = chance_to_keep(law, bound)
    return [
        replace(one, seconds=_slower(one.seconds, law.slowdown), success_probability=kept * one.success_probability)
        for one in seen
    ]


def _slower(seconds: Estimate, factor: float) -> Estimate:
    return Estimate(point=seconds.point * factor, lo=seconds.lo * factor, hi=seconds.hi * factor)


def bounded_chance(law: BoundedLaw, transition: Transition, demand: Demand, rank: int) -> float:
    """P(an adapter of this rank holds every token, if it keeps the bound), by the transition of `cautious_bounded`."""
    return chance(transition, bounded_slack(rank * law.parameters_per_rank, demand.nats, law.parameters_per_nat))


def bounded_warnings(calibration: Calibration, demand: Demand, bound: float) -> list[str]:
    """Why such a plan is extrapolated."""
    law = law_of(calibration)
    warnings = []
    if SOURCE in calibration.provenance and not law.observations:
        warnings.append(
            f"Not calibrated: these figures are those of {calibration.provenance[SOURCE]}, moved over to this model "
            f"with a wide interval. Run `lorasize calibrate` on {calibration.model.ref} for its own."
        )
    if bound != law.max_drift:
        warnings.append(
            f"Extrapolated: the probes were under a bound on drift of {law.max_drift:g} nats per token, this plan is "
            f"under {bound:g}; a tighter one takes more steps, and about half of those tried could not be kept."
        )
    most = law.nats_range[1]
    if demand.nats > most * RANGE_TOLERANCE:
        warnings.append(
            f"Extrapolated: no probe under a bound asked for more than {most:,.0f} nats, this corpus asks for "
            f"{demand.nats:,.0f}. Read size, steps and seconds as rough."
        )
    return warnings
