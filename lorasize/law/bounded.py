"""What an adapter holds that must leave other text as it was.

Under a bound on drift losses after a number of steps say little: they are near the ceiling, or the run has failed. So
no law in ΔL is fitted there. What decides is how many parameters there are for each nat that is to be written, at the
one site that such adapters sit on: recall and steps are a transition in that ratio (`law.transition`), and drift hardly
depends on it, since training is held back until it is small enough (docs/log/harm.md#plans-under-the-bound).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lorasize.errors import FitError
from lorasize.law.transition import NORMAL_95, TransitionPoint, fit_transition
from lorasize.records import BoundedLaw, Estimate, Observation, Transition

PARAMETERS_PER_NAT = 6.0  # of slack 1; the fit finds where recall begins: docs/log/harm.md#plans-under-the-bound
STEPS_EXPONENT = 0.35  # as steps follow slack: docs/log/plans.md#steps-under-the-bound
KIND_STEPS_SD = 0.36  # of ln steps, that is left
# As of `law.transition`, but here more passages slow more: docs/log/plans.md#steps-under-the-bound-again
CORPUS_STEPS = 0.92
PASSAGES_EXPONENT = 0.28
# A bound tighter than the probes', by which factor: docs/log/harm.md#tighter-bounds
TIGHTER_EXPONENT = 0.6  # of steps
TIGHTER_PARAMETERS = 1.0  # of parameters per nat
TIGHTER_KEPT = 0.5  # share of bounds at a quarter of the probes' that are kept
KIND_SD = 0.5  # of ln drift, between corpora of other kinds than the probes'; not tuned
_LEAST = 1e-3  # nats per token: a drift below is as good as none; not tuned


def bounded_slack(n_parameters: float, nats: float, parameters_per_nat: float = PARAMETERS_PER_NAT) -> float:
    """Parameters of an adapter ÷ those that so many nats ask for."""
    return n_parameters / (parameters_per_nat * max(nats, 1.0))


def bounded_transition(law: BoundedLaw, bound: float) -> Transition:
    """The law's transition under this bound: a tighter one than the probes' takes more parameters and more steps."""
    tighter, known = max(1.0, law.max_drift / bound), law.transition
    steps = known.steps_coefficient * tighter**TIGHTER_EXPONENT
    location = known.location + TIGHTER_PARAMETERS * math.log(tighter)
    return known.model_copy(update={"location": location, "steps_coefficient": steps})


def chance_to_keep(law: BoundedLaw, bound: float) -> float:
    """P(an adapter that would hold a corpus under the probes' bound also keeps this one): 1 where it is no tighter."""
    return float(TIGHTER_KEPT ** (math.log(max(1.0, law.max_drift / bound)) / math.log(4.0)))


def bounded_corpus_steps(n_passages: int | None) -> float:
    """Steps of a corpus of so many passages ÷ those of a probe of the same slack; 1 for a probe (None).

    Parts are not counted, though one corpus of seven took 2.5 times what was said:
    docs/log/plans.md#twenty-thousand-tokens-in-400-passages-held.
    """
    return 1.0 if n_passages is None else CORPUS_STEPS * n_passages**PASSAGES_EXPONENT


def fit_bounded(observations: Sequence[Observation], slowdown: float) -> BoundedLaw:
    """What these probes under one bound at one site say.

    Args:
        observations: The probes.
        slowdown: Seconds of their steps ÷ those of steps without a bound.

    Raises:
        FitError: none of them held every token and kept the bound.
    """
    points = [TransitionPoint(bounded_slack(o.n_parameters, o.nats), o.threshold_met, o.steps) for o in observations]
    known = [
        math.log(max(o.steps, 1) / bounded_corpus_steps(o.n_passages)) + STEPS_EXPONENT * math.log(point.slack)
        for o, point in zip(observations, points, strict=True)
        if o.threshold_met
    ]
    found = fit_transition(points)
    steps = {
        "steps_coefficient": math.exp(statistics.fmean(known)),
        "steps_exponent": STEPS_EXPONENT,
        "steps_spread": math.hypot(KIND_STEPS_SD, statistics.pstdev(known) / math.sqrt(len(known))),
    }
    transition = found.model_copy(update=steps)
    logs = [math.log(max(_LEAST, o.drift)) for o in observations if o.threshold_met and o.drift is not None]
    if not logs:
        raise FitError("no probe under a bound tells how far other text moved", unidentified=("drift",))
    first = observations[0]
    assert first.probe.max_drift is not None
    return BoundedLaw(
        max_drift=first.probe.max_drift,
        target_modules=first.probe.target_modules,
        layers_to_transform=first.probe.layers_to_transform,
        parameters_per_rank=first.n_parameters // first.probe.rank,
        parameters_per_nat=PARAMETERS_PER_NAT,
        transition=transition,
        nats_range=(min(o.nats for o in observations), max(o.nats for o in observations)),
        slowdown=slowdown,
        drift=math.exp(statistics.fmean(logs)),
        drift_spread=math.hypot(KIND_SD, statistics.pstdev(logs)),
        observations=tuple(observations),
    )


def bounded_drift(law: BoundedLaw, bound: float) -> Estimate:
    """How far an adapter under this bound moves other text, nats per token, with a 90 % interval.

    In proportion to the bound that the probes were under. An adapter that breaks its bound is not proven, so nothing
    lies above it.
    """
    point = min(law.drift / law.max_drift, 1.0) * bound
    factor = math.exp(NORMAL_95 * law.drift_spread)
    return Estimate(point=point, lo=point / factor, hi=min(point * factor, bound))
