"""From capacity to recall: how likely every target token ends above ½, and in how many steps.

Mean loss does not decide recall (one stubborn token breaks all that follows), so the count of successes is modelled
directly, against capacity slack:

    P(success) = 1 / (1 + exp(−(ln slack − location) / scale))        steps = coefficient · slack^−exponent

Source: the step from mean loss to exact recall in arXiv 2605.30260; MacKay 1992 for the integral over the location.
numpy and scipy only, scipy within the fit.

Examples:
    A transition much like that of the builtin model:

    >>> from lorasize.records import Transition
    >>> transition = Transition(
    ...     location=-0.04, location_stderr=0.07, scale=0.07, n_observations=29, n_successes=11,
    ...     steps_coefficient=247.0, steps_exponent=1.6, steps_spread=0.5, largest_slack=1.9,
    ... )
    >>> [round(success_probability(transition, slack), 2) for slack in (0.9, 1.0, 1.1, 1.2)]
    [0.31, 0.62, 0.84, 0.94]
    >>> round(expected_steps(transition, 1.2).point)
    185
    >>> round(finishes_within(transition, 1.2, 400), 2)
    0.94
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasize.errors import FitError
from lorasize.records import Estimate, Transition

LOCATION_PRIOR = (0.0, 1.0)  # mean and sd of the location: recall begins where predicted meets required reduction
LN_SCALE_PRIOR = (math.log(0.15), 0.7)
# Steps of a corpus beside those of a probe, and as they follow its passages: docs/log/plans.md#steps-under-the-bound
CORPUS_STEPS = 0.64
PASSAGES_EXPONENT = 0.22
FEW_BATCHES = 2.0  # up to which they follow batches, of which a step takes one: docs/log/recipe.md#many-batches
STEPS_EXPONENT_LIMITS = (0.0, 4.0)
STEPS_EXPONENT_DEFAULT = 1.0  # where the successes share one slack
STEPS_SPREAD_FLOOR = 0.15
STEPS_SPREAD_UNKNOWN = 0.4  # fewer than 3 successes leave no residual to measure
NORMAL_95 = 1.6448536269514722  # two-sided 90 %
LEAST_SLACK = 1e-3  # the law may predict less than nothing; its logarithm stops here
_SAME_SLACK = 0.05  # spread of ln slack, root of the sum of squares, that shows no exponent
_GRID_SD, _GRID_POINTS = 6.0, 49  # the posterior is summed over so many sd on both sides, in so many points

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TransitionPoint:
    """One probe: its predicted capacity slack, whether every token ended above ½, and the steps it ran."""

    slack: float
    success: bool
    steps: int


def fit_transition(points: Sequence[TransitionPoint]) -> Transition:
    """The transition by penalised likelihood, and the steps of a success by least squares.

    Weak priors on location (0 ± 1) and ln scale (ln 0.15 ± 0.7) keep the fit finite when failures and successes are
    perfectly separated, which a handful of probes usually are. Location, its error and scale are posterior means, not
    the mode and its curvature: simulated with 12 probes, "0.9" by the mode came true in 0.87 of cases, by the mean
    in 0.90.

    Raises:
        FitError: no probe, or none that succeeded.

    Examples:
        >>> slacks = (0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
        >>> fitted = fit_transition([TransitionPoint(slack, slack > 1.1, 80) for slack in slacks])
        >>> 1.0 < math.exp(fitted.location) < 1.3
        True
        >>> fitted.n_observations, fitted.n_successes
        (6, 3)
    """
    from scipy.optimize import minimize

    if not any(p.success for p in points):
        seen = f"None of {len(points)} probes" if points else "No probe"
        raise FitError(f"{seen} brought every token above ½: probe with more slack.", unidentified=("location",))
    x = np.array([_ln(p.slack) for p in points])
    success = np.array([float(p.success) for p in points])
    start = _start(x, success)
    mode = minimize(_loss, start, args=(x, success), jac=_gradient, method="BFGS", options={"gtol": 1e-9}).x
    location, stderr, ln_scale = _posterior(mode, x, success)
    coefficient, exponent, spread = _fit_steps([p for p in points if p.success])
    return Transition(
        location=location,
        location_stderr=stderr,
        scale=math.exp(ln_scale),
        n_observations=len(points),
        n_successes=int(success.sum()),
        steps_coefficient=coefficient,
        steps_exponent=exponent,
        steps_spread=spread,
        largest_slack=max(p.slack for p in points if p.success),
    )


def success_probability(transition: Transition, slack: float) -> float:
    """P(every token above ½) at this slack, averaged over what is not known of the location.

    With σ(z) ≈ Φ(z·√(π/8)), a location spread N(m, τ²) gives σ((ln slack − m) / √(scale² + π τ² / 8)): fewer probes,
    larger τ, more slack needed for the same confidence. Increases with slack.
    """
    return float(_logistic((_ln(slack) - transition.location) / effective_scale(transition)))


def effective_scale(transition: Transition) -> float:
    """Scale of `success_probability`: the transition's own, widened by what is not known of its location."""
    return math.sqrt(effective_variance(transition))


def effective_variance(transition: Transition) -> float:
    """Square of `effective_scale`."""
    return transition.scale**2 + math.pi / 8.0 * transition.location_stderr**2


def finishes_within(transition: Transition, slack: float, limit: float) -> float:
    """P(a successful run takes at most `limit` steps), steps being lognormal. Increases with slack."""
    late = math.log(expected_steps(transition, slack).point / limit) / transition.steps_spread
    return 0.5 * math.erfc(late / math.sqrt(2.0))


def corpus_steps(n_passages: int | None, n_batches: int = 1) -> float:
    """Steps of a corpus of so many passages ÷ those of a probe of the same slack; 1 for a probe (None)."""
    of_one = 1.0 if n_passages is None else CORPUS_STEPS * n_passages**PASSAGES_EXPONENT
    return of_one * batches_factor(n_batches)


def batches_factor(n_batches: int) -> float:
    """Steps of a corpus of so many batches ÷ those of one of a single batch: of more than two by the root."""
    return min(float(n_batches), math.sqrt(FEW_BATCHES * n_batches))


def expected_steps(transition: Transition, slack: float) -> Estimate:
    """Optimiser steps of a successful run, with a 90 % interval; never below one step."""
    seen = slack if transition.largest_slack is None else min(slack, transition.largest_slack)
    ln_steps = math.log(transition.steps_coefficient) - transition.steps_exponent * _ln(seen)
    half = NORMAL_95 * transition.steps_spread
    point, lo, hi = (max(1.0, math.exp(ln_steps + shift)) for shift in (0.0, -half, half))
    return Estimate(point=point, lo=lo, hi=hi)


def _ln(slack: float) -> float:
    return math.log(max(slack, LEAST_SLACK))


def _logistic(z: Array | float) -> Array:
    """1 / (1 + exp(−z)), by the hyperbolic tangent, which never overflows."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(z))), dtype=np.float64)


def _start(x: Array, success: Array) -> Array:
    """Half way between the mean failure and the mean success; the failures' side is the prior when there are none."""
    failed = x[success == 0.0]
    return np.array([(x[success == 1.0].mean() + (failed.mean() if len(failed) else 0.0)) / 2.0, LN_SCALE_PRIOR[0]])


def _losses(location: float, ln_scales: Array, x: Array, success: Array) -> Array:
    """Negative log posterior at one location, for each ln scale."""
    z = (x - location) * np.exp(-ln_scales)[:, None]
    likelihood = np.logaddexp(0.0, np.where(success == 1.0, -z, z)).sum(axis=1)
    squares = ((location - LOCATION_PRIOR[0]) / LOCATION_PRIOR[1]) ** 2
    squares_scale = ((ln_scales - LN_SCALE_PRIOR[0]) / LN_SCALE_PRIOR[1]) ** 2
    return np.asarray(likelihood + (squares + squares_scale) / 2.0, dtype=np.float64)


def _loss(theta: Array, x: Array, success: Array) -> float:
    """Negative log posterior of theta = (location, ln scale)."""
    return float(_losses(theta[0], theta[1:], x, success)[0])


def _gradient(theta: Array, x: Array, success: Array) -> Array:
    z = (x - theta[0]) * np.exp(-theta[1])
    pull = _logistic(z) - success
    priors = [(v - mean) / sd**2 for v, (mean, sd) in zip(theta, (LOCATION_PRIOR, LN_SCALE_PRIOR), strict=True)]
    return np.array([-(pull * np.exp(-theta[1])).sum() + priors[0], -(pull * z).sum() + priors[1]])


def _hessian(theta: Array, x: Array, success: Array) -> Array:
    """Curvature of the loss, (2, 2); the priors keep it positive where the likelihood is flat."""
    inverse = np.exp(-theta[1])
    z = (x - theta[0]) * inverse
    p = _logistic(z)
    pull, weight = p - success, p * (1.0 - p)
    mixed = (weight * inverse * z + pull * inverse).sum()
    return np.array(
        [
            [(weight * inverse**2).sum() + LOCATION_PRIOR[1] ** -2, mixed],
            [mixed, (weight * z**2 + pull * z).sum() + LN_SCALE_PRIOR[1] ** -2],
        ]
    )


def _posterior(mode: Array, x: Array, success: Array) -> tuple[float, float, float]:
    """Mean and sd of the location, and mean of ln scale, summed over a grid of ± 6 sd around the mode."""
    sd = np.sqrt(np.diag(np.linalg.inv(_hessian(mode, x, success))))
    locations, ln_scales = (
        np.linspace(m - _GRID_SD * s, m + _GRID_SD * s, _GRID_POINTS) for m, s in zip(mode, sd, strict=True)
    )
    log = -np.array([_losses(a, ln_scales, x, success) for a in locations])
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    mean = float(weight.sum(axis=1) @ locations)
    variance = float(weight.sum(axis=1) @ (locations - mean) ** 2)
    return mean, math.sqrt(variance), float(weight.sum(axis=0) @ ln_scales)


def _fit_steps(successes: Sequence[TransitionPoint]) -> tuple[float, float, float]:
    """Coefficient, exponent and spread (sd of ln steps) of the successful probes."""
    x = np.array([_ln(p.slack) for p in successes])
    y = np.log([max(p.steps, 1) for p in successes])
    centred = x - x.mean()
    spread_x = float((centred**2).sum())
    slope = -float(centred @ y) / spread_x if spread_x > _SAME_SLACK**2 else STEPS_EXPONENT_DEFAULT
    exponent = min(max(slope, STEPS_EXPONENT_LIMITS[0]), STEPS_EXPONENT_LIMITS[1])
    intercept = float((y + exponent * x).mean())
    if len(successes) < 3:
        return math.exp(intercept), exponent, STEPS_SPREAD_UNKNOWN
    rss = float(((y + exponent * x - intercept) ** 2).sum())
    return math.exp(intercept), exponent, max(STEPS_SPREAD_FLOOR, math.sqrt(rss / (len(successes) - 2)))
