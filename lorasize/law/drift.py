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
_LEAST = 1e-3  # nats per token: a drift below is as good as none; not tuned


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
