"""The law read the other way round: how much an adapter of a size holds, with the chance asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from lorasize.law.bounded import chance_to_keep
from lorasize.law.capacity import capacity_slack
from lorasize.planning.bounded import bounded_candidates, bounded_chance, bounded_warnings, cautious_bounded, law_of
from lorasize.planning.choice import Candidate, cautious_transition, chance, e_folds_out_of_range
from lorasize.records import Calibration, Demand, Holding
from lorasize.units import bits

_MOST = 1e12  # nats: no adapter holds more
_NARROW = 1e-4  # of ln nats: nobody reads more digits


def holdings(
    calibration: Calibration, rank: int, confidence: float, bound: float | None, sample_loss: float
) -> Iterator[Holding]:
    """What adapters of this rank hold at the site of the law under a bound, or at each calibrated site without one.

    Args:
        calibration: Of the model.
        rank: Of the adapter.
        confidence: The chance wanted that every token is held, strictly between 0 and 1.
        bound: On drift, nats per token; None for none.
        sample_loss: Nats per token of the text that `sample_tokens` counts.

    Raises:
        CalibrationError: the calibration has no law under a bound.
    """
    if bound is None:
        for one in (Candidate(site, rank) for site in calibration.sites):
            nats = largest_nats(partial(_chance, calibration, one), confidence)
            far = e_folds_out_of_range(calibration, _demand(nats)) > 0.0
            yield _holding(calibration, one, bound, nats, sample_loss, extrapolated=far)
        return
    law = law_of(calibration)
    (one,) = bounded_candidates(law, rank)
    kept = chance_to_keep(law, bound)

    def under_bound(demand: Demand) -> float:
        return kept * bounded_chance(law, cautious_bounded(law, demand, bound), demand, rank)

    nats = largest_nats(under_bound, confidence)
    far = bool(bounded_warnings(calibration, _demand(nats), bound))
    yield _holding(calibration, one, bound, nats, sample_loss, extrapolated=far)


def largest_nats(chance_of: Callable[[Demand], float], confidence: float) -> float:
    """The most nats of writing that are held with this chance; 0 where not even one is. The chance falls with nats."""
    low, high = 0.0, math.log(_MOST)
    if chance_of(_demand(1.0)) < confidence:
        return 0.0
    while high - low > _NARROW:
        middle = (low + high) / 2
        low, high = (middle, high) if chance_of(_demand(math.exp(middle))) >= confidence else (low, middle)
    return math.exp(low)


def _chance(calibration: Calibration, candidate: Candidate, demand: Demand) -> float:
    slack = capacity_slack(calibration.law, candidate.effective_parameters, demand)
    return chance(cautious_transition(calibration, demand), slack)


def _demand(nats: float) -> Demand:
    """So much to write; how it is spread over tokens is of no account here."""
    return Demand(base_loss=1.0, nats=nats, bits=bits(nats))


def _holding(
    calibration: Calibration,
    one: Candidate,
    bound: float | None,
    nats: float,
    sample_loss: float,
    *,
    extrapolated: bool,
) -> Holding:
    spec = one.spec(_demand(max(nats, 1.0)))
    return Holding(
        target_modules=spec.target_modules,
        layers_to_transform=spec.layers_to_transform,
        n_parameters=spec.n_parameters,
        bytes=spec.bytes,
        max_drift=bound,
        nats=nats,
        bits=bits(nats),
        random_tokens=math.floor(nats / calibration.law.reference_loss),
        sample_tokens=math.floor(nats / sample_loss),
        extrapolated=extrapolated,
    )
