"""From observations to a fitted law: what calibrate does at its end, and what every later observation repeats.

Pure arithmetic on records: nothing here knows a model, a file or a clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorasize.errors import FitError
from lorasize.law.bounded import fit_bounded
from lorasize.law.capacity import capacity_slack
from lorasize.law.fit import LawPoint, fit_law
from lorasize.law.transition import TransitionPoint, corpus_steps, fit_transition
from lorasize.records import BoundedLaw, Calibration, Demand, Law, Observation, Site, SiteEfficiency, Transition
from lorasize.units import bits

_RECURRING = 3  # probes that end on a token; not tuned


@dataclass(frozen=True)
class Fitted:
    """What observations say: the law, each site's efficiency in the order first seen, and the transition."""

    law: Law
    sites: tuple[SiteEfficiency, ...]
    transition: Transition


def recurring_tokens(observations: Sequence[Observation]) -> set[int]:
    """Tokens on which several probes ended with few others: what holds these up is not their capacity."""
    ends = Counter(token for o in observations for token in set(o.stubborn))
    return {token for token, n in ends.items() if n >= _RECURRING}


def without_held_up(observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """The observations but those that ended on recurring tokens."""
    recurring = recurring_tokens(observations)
    return tuple(o for o in observations if not recurring.intersection(o.stubborn))


def fit_observations(observations: Sequence[Observation]) -> Fitted:
    """Law, efficiencies and transition; the first site seen is the reference.

    Raises:
        FitError: the observations do not identify the law.
    """
    observations = without_held_up(observations)
    order = list(dict.fromkeys(o.probe.site for o in observations))
    per_rank = {o.probe.site: o.n_parameters // o.probe.rank for o in observations}
    reference_loss = _mean([o.base_loss for o in observations if o.probe.kind == "random"])
    fit = fit_law(law_points(observations, reference_loss), reference_loss=reference_loss, soft_ceiling=True)
    sites = tuple(
        SiteEfficiency(
            target_modules=site.target_modules,
            layers_to_transform=site.layers_to_transform,
            efficiency=efficiency,
            stderr=stderr,
            parameters_per_rank=per_rank[site],
        )
        for site, (efficiency, stderr) in zip(order, fit.efficiencies, strict=True)
    )
    return Fitted(fit.law, sites, fit_transition(transition_points(observations, fit.law, sites)))


def refit(calibration: Calibration, observation: Observation) -> Calibration:
    """The calibration with one observation more; of a run under a bound on drift, its law under that bound.

    Raises:
        FitError: the observations do not identify the law, or the calibration has none under this bound at this site.
    """
    if observation.probe.max_drift is not None:
        return calibration.model_copy(update={"bounded": _refit_bounded(calibration.bounded, observation)})
    observations = (*calibration.observations, observation)
    fitted = fit_observations(observations)
    parts = {"law": fitted.law, "sites": fitted.sites, "transition": fitted.transition}
    return calibration.model_copy(update={**parts, "observations": observations})


def _refit_bounded(law: BoundedLaw | None, observation: Observation) -> BoundedLaw:
    probe = observation.probe
    if law is None or (law.max_drift, law.site) != (probe.max_drift, probe.site) or not law.observations:
        raise FitError("the calibration has no law under this bound at this site", unidentified=("bounded",))
    return fit_bounded((*law.observations, observation), law.slowdown)


def _mean(values: Sequence[float]) -> float:
    if not values:
        raise FitError("no random-token probe was run: calibrate for longer", unidentified=["reference_loss"])
    return sum(values) / len(values)


def law_points(observations: Sequence[Observation], reference_loss: float) -> list[LawPoint]:
    """Observations as points of the law; sites are numbered in the order in which they were first probed."""
    order = list(dict.fromkeys(o.probe.site for o in observations))
    return [_point(o, order, reference_loss) for o in observations]


def _point(observation: Observation, order: Sequence[Site], reference_loss: float) -> LawPoint:
    """The observation as tokens of reference loss: total nats are what an adapter has to hold."""
    return LawPoint(
        site_index=order.index(observation.probe.site),
        n_parameters=observation.n_parameters,
        n_tokens=observation.nats / reference_loss,
        loss_reduction=observation.early_reduction * reference_loss / observation.base_loss,
        censored=observation.censored,
    )


def transition_points(
    observations: Sequence[Observation], law: Law, sites: Sequence[SiteEfficiency]
) -> list[TransitionPoint]:
    """Each probe's slack under a law, whether it held every token, and its steps."""
    efficiency = {s.site: s.efficiency for s in sites}
    points = []
    for o in observations:
        effective = o.n_parameters * efficiency[o.probe.site]
        demand = Demand(base_loss=o.base_loss, nats=o.nats, bits=bits(o.nats))
        steps = round(o.steps / corpus_steps(o.n_passages))
        points.append(TransitionPoint(capacity_slack(law, effective, demand), o.threshold_met, steps))
    return points
