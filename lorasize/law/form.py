"""The Parametric Memory Law: predict, invert, and say how sure.

    ΔL = C · N^α · ℓ^−β + b        nats per target token

N: effective parameters, ℓ: target tokens. ΔL is left unclipped: a value above the base loss is capacity to spare.
Single coefficients are poorly identified (they correlate up to 0.99); predictions with their covariance are not. So
nothing here reports a coefficient without the covariance, and nothing else should read one alone.

Source: arXiv 2605.30260.

Examples:
    A law much like that of the builtin model. 2,112 parameters are those of rank 1 at its reference site:

    >>> from lorasize.records import Law
    >>> law = Law(
    ...     coefficient=1.86, parameter_exponent=0.968, length_exponent=1.135, offset=2.44, reference_loss=13.8,
    ...     covariance=((0.0,) * 4,) * 4, r_squared=0.99, form=SOFT_FORM, residual_stderr=0.3, n_observations=29,
    ...     parameters_range=(700.0, 10_900.0), tokens_range=(47.0, 435.0),
    ... )
    >>> round(predict(law, 2112, 200), 2)  # nats per token that 200 tokens lose
    9.96
    >>> round(predict(law, 2112, 100), 2)  # more than they have: capacity to spare
    18.95
    >>> round(13.8 * soft_capped(18.95 / 13.8), 2)  # what they do lose
    13.3
    >>> round(required_parameters(law, 13.8, 200))
    3235
    >>> in_range(law, 3235, 200), in_range(law, 3235, 2000)
    (True, False)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lorasize.records import Law

FORM = "C*N^alpha*l^-beta+b"
SOFT_FORM = FORM + ", bent under the reference loss"

RANGE_TOLERANCE = 1.5  # a factor this far outside the fitted range still counts as inside; not tuned
SATURATED = 0.97  # a probe that removed this share of the loss only says that capacity was at least that; not tuned

# Of the soft ceiling (docs/log/law.md#law-forms-with-censored-successes); 4.9 fits the paper's own points.
SHARPNESS = 5.0

Array = NDArray[np.float64]


def predict(law: Law, effective_parameters: float, n_tokens: float) -> float:
    """Loss reduction in nats per token, unclipped: it may exceed the base loss or lie below 0."""
    return law.offset + law.coefficient * _power(law, effective_parameters, n_tokens)


def soft_capped(share: float) -> float:
    """The share of the base loss that is really lost when the law promises `share` of it; at most 1.

    Examples:
        >>> [round(soft_capped(share), 2) for share in (0.5, 1.0, 1.5)]
        [0.5, 0.87, 0.98]
    """
    return float(bend(np.array([share]), 1.0)[0])


def soft_capped_slope(share: float) -> float:
    """How fast `soft_capped` rises at `share`: 1 far below the ceiling, 0 far above.

    Examples:
        >>> [round(soft_capped_slope(share), 2) for share in (0.5, 1.0, 1.5)]
        [0.96, 0.44, 0.08]
    """
    return float(bend_slope(np.array([share]), 1.0)[0])


def predict_gradient(law: Law, effective_parameters: float, n_tokens: float) -> Array:
    """Of `predict`, by coefficient, parameter exponent, length exponent and offset, shape (4,)."""
    power = _power(law, effective_parameters, n_tokens)
    slope = law.coefficient * power
    return np.array([power, slope * math.log(effective_parameters), -slope * math.log(n_tokens), 1.0])


def required_parameters(law: Law, loss_reduction: float, n_tokens: float) -> float:
    """Effective parameters at which the law predicts this loss reduction; 0 where the offset alone reaches it."""
    needed = loss_reduction - law.offset
    if needed <= 0:
        return 0.0
    return float((needed / law.coefficient * n_tokens**law.length_exponent) ** (1.0 / law.parameter_exponent))


def in_range(law: Law, effective_parameters: float, n_tokens: float) -> bool:
    """Whether both lie inside the fitted ranges, give or take a factor of 1.5."""
    asked = ((effective_parameters, law.parameters_range), (n_tokens, law.tokens_range))
    return all(lo / RANGE_TOLERANCE <= value <= hi * RANGE_TOLERANCE for value, (lo, hi) in asked)


def _power(law: Law, effective_parameters: float, n_tokens: float) -> float:
    return float(effective_parameters**law.parameter_exponent * n_tokens**-law.length_exponent)


def bend(reached: Array, ceiling: float) -> Array:
    """ΔL under a soft ceiling: near the plain law far below it, never above it.

    Examples:
        >>> bend(np.array([7.0, 14.0, 28.0]), 14.0).round(1)
        array([ 7. , 12.2, 13.9])
    """
    return np.asarray(reached * (1.0 + np.maximum(reached / ceiling, 0.0) ** SHARPNESS) ** (-1.0 / SHARPNESS))


def bend_slope(reached: Array, ceiling: float) -> Array:
    """Derivative of `bend`: 1 far below the ceiling, 0 far above."""
    return np.asarray((1.0 + np.maximum(reached / ceiling, 0.0) ** SHARPNESS) ** (-1.0 / SHARPNESS - 1.0))


def unbend(observed: Array, ceiling: float) -> Array:
    """The plain law's value that the soft ceiling bends to `observed`, which lies below it.

    Examples:
        >>> unbend(bend(np.array([7.0, 14.0]), 14.0), 14.0).round(6)
        array([ 7., 14.])
    """
    share = np.clip(observed / ceiling, 0.0, SATURATED) ** SHARPNESS
    return np.asarray(observed * (1.0 - share) ** (-1.0 / SHARPNESS))
