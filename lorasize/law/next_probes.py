"""Which probe next: the one that most reduces what is not known of the recommended size, for what it costs.

What plan asks of a calibration is N, the effective parameters at which a corpus reaches the slack of an even chance. To
first order its variance follows from the covariance of the law, the error of the transition's location, and the errors
of those sites' efficiencies that may be the best. Each candidate probe is an observation of a known gradient and noise,
so what it would add is known before it runs; its cost is counted in layer-tokens, the same on every machine, so that a
design depends on what was observed and on nothing else.

Source: D. V. Lindley 1956 and Chaloner & Verdinelli 1995 (Bayesian experimental design for linear models, by rank-one
updates of the covariance).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lorasize.law.form import predict, predict_gradient, soft_capped, soft_capped_slope
from lorasize.law.observations import Fitted
from lorasize.law.transition import LEAST_SLACK, effective_variance, expected_steps, success_probability
from lorasize.records import CLEARLY_FAILED, LAW_STEPS, PROBE_STEPS, Law, Site

DEMANDS = (60.0, 200.0, 600.0)  # tokens of reference loss for which the size should be known; not tuned

# What may be probed: not tuned.
PROBE_RANKS = (1, 2, 4)
RATIOS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 1.9, 2.4)  # of the demand at an even chance
_TOKEN_STEP = 4  # texts are as long as a multiple of it

# Layer-tokens of a step that do not depend on its tokens: not tuned, but rounded from the calibration that was shipped
# when it was set (seconds_overhead ÷ seconds_per_layer_token = 658).
OVERHEAD = 650.0

# Mean and sd of ln efficiency where nobody probed: not tuned. In docs/log/law.md#modules-and-layers more layers of the
# reference's module have efficiencies of 1.0 to 1.2, other modules of 0.02 to 0.6.
_SAME_MODULE = (0.0, 0.3)
_OTHER_MODULE = (-0.7, 0.7)
_MOST_SD = 1.0  # of ln efficiency, of a site that was probed; not tuned

# These keep logarithms, quotients and powers finite: not tuned.
_LEAST_SHARE = 0.05  # of a loss reduction, that has to be left above the law's offset
_LEAST_VARIANCE = 1e-6  # of a difference of efficiencies
_LEAST_RESIDUAL = 0.02  # of the reference loss: few points that happen to agree prove no small noise
_MOST_LN_TOKENS = 20.0

_NORMAL_SLOPE = 0.8  # √(2/π): Φ(z) is nearly (1 + tanh(√(2/π) z)) / 2

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ProbeCandidate:
    """A probe that may be run: a site by its place among the sites, a rank, tokens of random text, and its work."""

    site: int
    rank: int
    n_tokens: int
    work: float
    gradient: Array  # of the observed loss reduction, nats, by (C, α, β, b, ln efficiencies)
    precision: float  # of that observation, 1 / nats²
    boundary_precision: float  # of what it says of the transition's location


def work_of(n_tokens: int, layers_run: int, steps: float) -> float:
    """Layer-tokens of a training run; the head counts as one layer more."""
    return steps * (n_tokens * (layers_run + 1) + OVERHEAD)


def next_probes(
    fitted: Fitted,
    sites: Sequence[Site],
    parameters_per_rank: Mapping[Site, int],
    layers_run: Mapping[Site, int],
    token_limits: tuple[int, int],
    how_many: int,
    work_left: float,
) -> list[tuple[Site, int, int]]:
    """Site, rank and random tokens of the probes that together tell most for their work, greedily.

    Args:
        fitted: What the observations say so far.
        sites: All that may be probed, the reference first; those without an observation enter with a prior.
        parameters_per_rank: Of each site.
        layers_run: How many layers a step at a site runs.
        token_limits: The shortest and the longest text.
        how_many: Probes at most.
        work_left: Layer-tokens that they may take together, as expected.
    """
    means, known, covariance = _beliefs(fitted, sites)
    location = fitted.transition.location_stderr**2
    pool = list(_candidates(fitted, sites, means, parameters_per_rank, layers_run, token_limits))
    weights = _site_weights(means, covariance, known)
    chosen: list[tuple[Site, int, int]] = []
    for _ in range(how_many):
        best = max(pool, key=lambda c: _gain(c, fitted, covariance, location, weights) / c.work)
        if best.work > work_left:
            break
        work_left -= best.work
        pool.remove(best)
        chosen.append((sites[best.site], best.rank, best.n_tokens))
        covariance = _updated(covariance, best)
        location = 1.0 / (1.0 / location + best.boundary_precision)
    return chosen


def _beliefs(fitted: Fitted, sites: Sequence[Site]) -> tuple[Array, NDArray[np.bool_], Array]:
    """Mean ln efficiency of each site, which ones were probed, and the covariance of (C, α, β, b, ln efficiencies)."""
    measured = {s.site: s for s in fitted.sites}
    means, sds, known = [], [], []
    for site in sites:
        probed = measured.get(site)
        mean, sd = _SAME_MODULE if site.target_modules == sites[0].target_modules else _OTHER_MODULE
        if probed is not None:
            mean, sd = math.log(probed.efficiency), min(_MOST_SD, probed.stderr / probed.efficiency)
        means.append(mean)
        sds.append(sd)
        known.append(probed is not None)
    covariance = np.zeros((4 + len(sites), 4 + len(sites)))
    covariance[:4, :4] = fitted.law.covariance
    covariance[range(4, 4 + len(sites)), range(4, 4 + len(sites))] = np.square(sds)
    return np.array(means), np.array(known), covariance


def _site_weights(means: Array, covariance: Array, known: NDArray[np.bool_]) -> Array:
    """How likely each site is to be the best of all, roughly: the chance to beat the best one known."""
    efficiency = np.exp(means)
    variances = efficiency**2 * np.diag(covariance)[4:]
    best = int(np.argmax(np.where(known, means, -np.inf)))
    z = (efficiency - efficiency[best]) / np.sqrt(np.maximum(variances + variances[best], _LEAST_VARIANCE))
    return np.asarray(0.5 * (1.0 + np.tanh(_NORMAL_SLOPE * z)), dtype=np.float64)


def size_gradients(fitted: Fitted) -> Iterator[tuple[Array, float]]:
    """For each demand: gradient of ln N by (C, α, β, b), and by the transition's location."""
    law, reached = fitted.law, _even_chance(fitted)
    above = _above_offset(law, reached, reached)
    for tokens in DEMANDS:
        ln_n = (math.log(above / law.coefficient) + law.length_exponent * math.log(tokens)) / law.parameter_exponent
        by = (-1.0 / law.coefficient, -ln_n, math.log(tokens), -1.0 / above)
        yield np.array(by) / law.parameter_exponent, reached / (law.parameter_exponent * above)


def _even_chance(fitted: Fitted) -> float:
    """Loss reduction, unclipped, that the law has to predict for an even chance of recall, nats per token."""
    return math.exp(fitted.transition.location) * fitted.law.reference_loss


def _above_offset(law: Law, reached: float, whole: float) -> float:
    """How much of a loss reduction exceeds the law's offset; at least a twentieth of `whole`."""
    return max(reached - law.offset, _LEAST_SHARE * whole)


def _variance(fitted: Fitted, covariance: Array, location: float, weights: Array) -> float:
    """Of ln N, over the demands and over the sites that may be the best."""
    sizes = [g @ covariance[:4, :4] @ g + h * h * location for g, h in size_gradients(fitted)]
    return float(np.mean(sizes) + weights @ np.diag(covariance)[4:])


def _candidates(
    fitted: Fitted,
    sites: Sequence[Site],
    means: Array,
    parameters_per_rank: Mapping[Site, int],
    layers_run: Mapping[Site, int],
    token_limits: tuple[int, int],
) -> Iterator[ProbeCandidate]:
    for k, site in enumerate(sites):
        for rank in PROBE_RANKS:
            n = max(1.0, rank * parameters_per_rank[site] * math.exp(means[k]))
            even = _tokens_at(fitted, n)
            lengths = (_TOKEN_STEP * round(ratio * even / _TOKEN_STEP) for ratio in RATIOS)
            for tokens in sorted({min(token_limits[1], max(token_limits[0], length)) for length in lengths}):
                yield _candidate(fitted, k, rank, n, tokens, layers_run[site], len(sites))


def _tokens_at(fitted: Fitted, effective_parameters: float) -> float:
    """Tokens of reference loss that these parameters hold with an even chance."""
    law = fitted.law
    above = _above_offset(law, _even_chance(fitted), law.reference_loss)
    ln_tokens = math.log(law.coefficient / above) + law.parameter_exponent * math.log(effective_parameters)
    return math.exp(min(_MOST_LN_TOKENS, ln_tokens / law.length_exponent))


def _candidate(
    fitted: Fitted, site: int, rank: int, effective: float, tokens: int, layers_run: int, n_sites: int
) -> ProbeCandidate:
    law, transition = fitted.law, fitted.transition
    reached = predict(law, effective, tokens)
    slack = max(reached / law.reference_loss, LEAST_SLACK)
    success = success_probability(transition, slack)
    share = soft_capped(slack)
    steps = expected_steps(transition, slack).point
    failing = LAW_STEPS if share < CLEARLY_FAILED else PROBE_STEPS
    early = success if steps <= LAW_STEPS else 0.0  # a success that comes early hides how much could have been held
    gradient = np.zeros(4 + n_sites)
    gradient[:4] = predict_gradient(law, effective, tokens)
    gradient[4 + site] = law.parameter_exponent * (reached - law.offset) if site else 0.0
    return ProbeCandidate(
        site=site,
        rank=rank,
        n_tokens=tokens,
        work=work_of(tokens, layers_run, success * min(steps, PROBE_STEPS) + (1.0 - success) * failing),
        gradient=gradient * soft_capped_slope(slack),
        precision=(1.0 - early) / max(law.residual_stderr, _LEAST_RESIDUAL * law.reference_loss) ** 2,
        boundary_precision=success * (1.0 - success) / effective_variance(transition),
    )


def _updated(covariance: Array, probe: ProbeCandidate) -> Array:
    """The covariance after one more observation."""
    moved = covariance @ probe.gradient
    shrink = probe.precision / (1.0 + probe.precision * float(probe.gradient @ moved))
    return np.asarray(covariance - shrink * np.outer(moved, moved), dtype=np.float64)


def _gain(probe: ProbeCandidate, fitted: Fitted, covariance: Array, location: float, weights: Array) -> float:
    after = 1.0 / (1.0 / location + probe.boundary_precision)
    now = _variance(fitted, covariance, location, weights)
    return now - _variance(fitted, _updated(covariance, probe), after, weights)
