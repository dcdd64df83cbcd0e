"""What memorising will do to other text, as the probes did: a plan's warning before any training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lorasize.records import CLEARLY_FAILED, Estimate, Observation

# Of ln drift, between corpora of other kinds than the probes'. Chosen above the spreads that were measured, 0.32 and
# 0.40: docs/log/plans.md#drift-predicted-on-unseen-corpora.
KIND_SD = 0.5
_NORMAL_90 = 1.645
_LEAST_SLACK = 1e-3  # the law may predict less than nothing; its logarithm stops here
_SAME_SLACK = 0.2  # sd of ln slack that shows no slope; not tuned
_LEAST = 1e-3  # nats per token: a drift below is as good as none; not tuned


def bounded_drift(observations: Sequence[Observation], slacks: Sequence[float], slack: float) -> Estimate | None:
    """How far an adapter of this slack moves other text under a bound, nats per token, with a 90 % interval.

    ln drift is taken to be linear in ln slack over the probes that held every token: the more room an adapter has, the
    less it has to give up elsewhere. None where fewer than two of them measured it.

    Args:
        observations: Probes under a bound.
        slacks: The slack of each.
        slack: That of the adapter in question.
    """
    held = [
        (math.log(max(_LEAST_SLACK, s)), math.log(max(_LEAST, o.drift)))
        for o, s in zip(observations, slacks, strict=True)
        if o.n_stubborn == 0 and o.drift is not None
    ]
    if len(held) < 2:
        return None
    x, y = [one for one, _ in held], [one for _, one in held]
    spread_x = statistics.pstdev(x)
    slope = statistics.linear_regression(x, y).slope if spread_x > _SAME_SLACK else 0.0
    slope = min(0.0, slope)
    level = statistics.fmean(y) - slope * statistics.fmean(x)
    left = [b - level - slope * a for a, b in held]
    spread = math.hypot(KIND_SD, statistics.pstdev(left) * math.sqrt(1 + 1 / len(held)))
    inside = min(max(math.log(max(_LEAST_SLACK, slack)), min(x)), max(x))
    lo, point, hi = (math.exp(level + slope * inside + side * _NORMAL_90 * spread) for side in (-1, 0, 1))
    return Estimate(point=point, lo=lo, hi=hi)


def predicted_drift(observations: Sequence[Observation]) -> Estimate | None:
    """Loss that an adapter which holds its corpus adds on neutral text, nats per token, with a 90 % interval.

    The geometric mean over the probes that lost most of their loss: size, rank and demand explain nothing beyond it
    (docs/log/plans.md#drift-predicted-on-unseen-corpora). None where fewer than two of them measured it.
    """
    held = [o for o in observations if o.loss_reduction >= CLEARLY_FAILED * o.base_loss]
    logs = [math.log(max(_LEAST, o.drift)) for o in held if o.drift is not None]
    if len(logs) < 2:
        return None
    mean = statistics.fmean(logs)
    spread = math.hypot(KIND_SD, statistics.stdev(logs) * math.sqrt(1 + 1 / len(logs)))
    lo, hi = (math.exp(mean + side * _NORMAL_90 * spread) for side in (-1, 1))
    return Estimate(point=math.exp(mean), lo=lo, hi=hi)
