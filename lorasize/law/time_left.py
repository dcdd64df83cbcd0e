"""How many steps a run takes in all, told while it runs: by its plan, and by how far its loss has fallen."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from lorasize.law.transition import NORMAL_95
from lorasize.records import Estimate

# Share of the first loss that is left, ln(steps in all ÷ steps so far) of runs that came to it, and its standard
# deviation: docs/log/plans.md#time-left
_ENDS = (
    (0.008, 0.11, 0.27),
    (0.02, 0.11, 0.22),
    (0.045, 0.24, 0.27),
    (0.08, 0.41, 0.35),
    (0.12, 0.56, 0.37),
    (0.2, 0.79, 0.46),
    (0.3, 1.07, 0.57),
    (0.42, 1.34, 0.62),
    (0.6, 1.66, 0.70),
    (0.8, 2.03, 0.73),
    (1.0, 2.83, 2.0),  # before the loss falls, steps so far tell nothing
)
_YIELDS = 0.5  # of the distance between what plan and run say, that the plan's spread grows by; not tuned


def steps_in_all(planned: Estimate | None, step: int, share: float) -> Estimate:
    """Steps of a run that has taken `step` of them and goes on, with a 90 % interval.

    What the plan says and what runs that had come so far took are taken for log-normal and multiplied, the plan with
    the more doubt the further the run is from it.

    Args:
        planned: Steps that the plan predicts, with their 90 % interval; None where there is no plan.
        step: Steps so far, at least 1.
        share: Mean loss now ÷ mean loss before the first step.
    """
    shares, ratios, spreads = zip(*_ENDS, strict=True)
    x, known = math.log(max(share, shares[0])), np.log(shares)
    seen = NormalDist(math.log(step) + float(np.interp(x, known, ratios)), float(np.interp(x, known, spreads)))
    if planned is not None and planned.lo < planned.hi:
        seen = _combined(seen, planned)
    passed = seen.cdf(math.log(step))
    lo, point, hi = (math.exp(seen.inv_cdf(passed + part * (1.0 - passed))) for part in (0.05, 0.5, 0.95))
    return Estimate(point=point, lo=lo, hi=hi)


def _combined(seen: NormalDist, planned: Estimate) -> NormalDist:
    """What the run and its plan say of ln steps, together."""
    said = math.log(planned.point)
    spread = math.log(planned.hi / planned.lo) / (2.0 * NORMAL_95)
    variance = spread**2 + (_YIELDS * (said - seen.mean)) ** 2
    weight = seen.variance / (seen.variance + variance)
    return NormalDist(seen.mean + weight * (said - seen.mean), math.sqrt(weight * variance))
