"""Why a plan should not be believed to the letter: what was not calibrated, not reached, or measured elsewhere."""

from __future__ import annotations

import math

from lorasize.law.capacity import equivalent_tokens
from lorasize.law.form import RANGE_TOLERANCE, in_range, predict
from lorasize.planning.bounded import bounded_warnings
from lorasize.planning.choice import Assessment
from lorasize.planning.elsewhere import scaled_from
from lorasize.planning.prior import source_of
from lorasize.records import Calibration, Demand


def plan_warnings(
    calibration: Calibration,
    demand: Demand,
    chosen: Assessment,
    confidence: float,
    *,
    same_device: bool,
    bound: float | None = None,
) -> tuple[str, ...]:
    """Every warning of a plan with this adapter; `same_device`: times were measured on the plan's device."""
    if bound is None:
        warnings = range_warnings(calibration, demand, chosen)
    else:
        warnings = bounded_warnings(calibration, demand, bound)
    if chosen.success_probability < confidence:
        warnings.append(
            f"No adapter searched reaches confidence {confidence:g}: this one has the most capacity and is predicted "
            f"to succeed with probability {chosen.success_probability:.2f}."
        )
    if measured_on := scaled_from(calibration):
        warnings.append(
            f"Seconds are an estimate: scaled from {measured_on} to {calibration.device} by measured rates of matrix "
            "products and of memory. `lorasize calibrate` on this device measures its own."
        )
    elif not same_device:
        warnings.append(f"Times were measured on {calibration.device}, not on the plan's device: they are rough.")
    return tuple(warnings)


def range_warnings(calibration: Calibration, demand: Demand, chosen: Assessment) -> list[str]:
    """Why the choice is extrapolated: empty when law and transition were both calibrated around it."""
    law, tokens = calibration.law, equivalent_tokens(calibration.law, demand)
    effective = chosen.candidate.effective_parameters
    warnings = []
    weights = calibration.quantization
    kind = calibration.dtype if weights is None else f"{calibration.dtype}, quantised to {weights},"
    if source := source_of(calibration):
        warnings.append(
            f"Not calibrated: these figures are those of {source}, moved over to this model with a wide interval. "
            f"Run `lorasize calibrate` on {calibration.model.ref} in {kind} for its own."
        )
    if not in_range(law, effective, tokens):
        (n_lo, n_hi), (l_lo, l_hi) = law.parameters_range, law.tokens_range
        beyond = effective > n_hi * RANGE_TOLERANCE or tokens > l_hi * RANGE_TOLERANCE
        rough = "Read size, steps and seconds as rough." if beyond else "Smaller than that is easier; times are rough."
        warnings.append(
            f"Extrapolated: calibrated for {n_lo:,.0f} to {n_hi:,.0f} effective parameters and corpora like "
            f"{l_lo:,.0f} to {l_hi:,.0f} random tokens; asked for {effective:,.0f} and {tokens:,.0f}. {rough}"
        )
    most = _most_slack(calibration)
    if chosen.slack > most * RANGE_TOLERANCE:
        warnings.append(
            f"Extrapolated: capacity slack {chosen.slack:.2f}, while no probe had more than {most:.2f}; "
            "recall is likely, steps and seconds are rough."
        )
    return warnings


def _most_slack(calibration: Calibration) -> float:
    """The largest slack any probe of the calibration had; infinite when no observation is kept."""
    efficiency = {s.site: s.efficiency for s in calibration.sites}
    law, seen = calibration.law, [math.inf] if not calibration.observations else []
    for o in calibration.observations:
        worth = efficiency.get(o.probe.site, 1.0)
        tokens = max(1.0, o.nats / law.reference_loss)
        seen.append(predict(law, o.n_parameters * worth, tokens) / law.reference_loss)
    return max(seen)
