"""Which adapter: every calibrated site with every rank, assessed against one corpus, and the cheapest that will do.

A corpus of D nats counts as ℓ = D / reference_loss tokens of the calibration's random text, so that text of any kind
is measured by what has to be written and not by its token count. Capacity slack is the law's loss reduction at (N, ℓ)
over `reference_loss`: predicted over required. 1 means that the law just reaches the ceiling.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorasize.errors import CalibrationError
from lorasize.law.capacity import capacity_slack, equivalent_tokens
from lorasize.law.form import RANGE_TOLERANCE, required_parameters
from lorasize.law.transition import corpus_steps, expected_steps, finishes_within, success_probability
from lorasize.records import (
    BATCH_TOKENS,
    BYTES_PER_PARAMETER,
    PROBE_STEPS,
    AdapterSpec,
    Calibration,
    Demand,
    Estimate,
    Minimize,
    Site,
    SiteEfficiency,
    Transition,
)

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
DISTANCE_SD = 0.05  # sd of the location, in ln slack, added for every e-fold outside the calibrated range


@dataclass(frozen=True)
class Candidate:
    """A calibrated site with a rank."""

    calibrated: SiteEfficiency
    rank: int

    @property
    def site(self) -> Site:
        """Where it sits."""
        return self.calibrated.site

    @property
    def n_parameters(self) -> int:
        """Trainable adapter parameters."""
        return self.rank * self.calibrated.parameters_per_rank

    @property
    def effective_parameters(self) -> float:
        """The same in parameters of the reference site."""
        return self.n_parameters * self.calibrated.efficiency

    def spec(self, demand: Demand) -> AdapterSpec:
        """The record of this adapter; `bits_per_parameter` is what this corpus asks of it."""
        return AdapterSpec(
            rank=self.rank,
            lora_alpha=self.rank,
            target_modules=self.calibrated.target_modules,
            layers_to_transform=self.calibrated.layers_to_transform,
            n_parameters=self.n_parameters,
            bytes=self.n_parameters * BYTES_PER_PARAMETER,
            bits_per_parameter=demand.bits / self.n_parameters,
        )


@dataclass(frozen=True)
class Assessment:
    """A candidate and what it is expected to do with one corpus."""

    candidate: Candidate
    slack: float
    success_probability: float
    steps: Estimate
    seconds: Estimate


def candidates(
    calibration: Calibration, *, rank: int | None = None, target_modules: Sequence[str] | None = None
) -> Iterator[Candidate]:
    """Every calibrated site with every rank of the ladder; an explicit rank or module set leaves only itself.

    Raises:
        CalibrationError: the module set was not calibrated, so nothing can be predicted for it.
    """
    for site in calibration.sites if target_modules is None else require_modules(calibration, target_modules):
        for r in RANKS if rank is None else (rank,):
            yield Candidate(site, r)


def require_modules(calibration: Calibration, target_modules: Sequence[str]) -> list[SiteEfficiency]:
    """The sites of these modules.

    Raises:
        CalibrationError: the module set was not calibrated.
    """
    sites = [s for s in calibration.sites if set(s.target_modules) == set(target_modules)]
    if not sites:
        known = sorted({"+".join(s.target_modules) for s in calibration.sites})
        asked, meant = "+".join(target_modules), _meant(calibration, target_modules)
        raise CalibrationError(f"The calibration holds no site with modules {asked}; it has {', '.join(known)}.{meant}")
    return sites


def _meant(calibration: Calibration, target_modules: Sequence[str]) -> str:
    """A question that offers the nearest calibrated modules; above 0.85, since k_proj is not meant by q_proj."""
    known = sorted({module for site in calibration.sites for module in site.target_modules})
    wrong = [module for module in target_modules if module not in known]
    near = [name for module in wrong for name in difflib.get_close_matches(module, known, n=1, cutoff=0.85)]
    return f" Did you mean {' and '.join(near)}?" if near else ""


def e_folds_out_of_range(calibration: Calibration, demand: Demand) -> float:
    """How far, in e-folds, this corpus asks beyond the calibrated range; 0 inside.

    Adds the distance of the corpus above the longest calibrated one and of the parameters it needs for an even chance
    above the largest. Only the far side counts: it grows with demand, so a larger corpus never gets a bolder plan.
    """
    law = calibration.law
    tokens = equivalent_tokens(law, demand)
    needed = required_parameters(law, law.reference_loss * math.exp(calibration.transition.location), tokens)
    asked = ((tokens, law.tokens_range[1]), (needed, law.parameters_range[1]))
    return sum(max(0.0, math.log(max(v, 1e-9) / (hi * RANGE_TOLERANCE))) for v, hi in asked)


def cautious_transition(calibration: Calibration, demand: Demand) -> Transition:
    """The calibration's transition, its location less certain the further the corpus lies out of range."""
    transition, distance = calibration.transition, e_folds_out_of_range(calibration, demand)
    stderr = transition.location_stderr * (1.0 + distance) + DISTANCE_SD * distance
    return transition.model_copy(update={"location_stderr": stderr})


def step_seconds(calibration: Calibration, layers_to_transform: Sequence[int], n_tokens: float) -> float:
    """Seconds of one step on these positions, prompts included, in one batch or several.

    Layers before the first adapted one run only once.
    """
    cost = calibration.cost
    layers = calibration.model.n_layers - min(layers_to_transform)
    per_token = cost.seconds_per_layer_token * layers + cost.seconds_per_head_token
    return cost.seconds_overhead * max(1, math.ceil(n_tokens / BATCH_TOKENS)) + n_tokens * per_token


def chance(transition: Transition, slack: float) -> float:
    """P(every token above ½ within the steps that probes were given): what took longer was never seen to succeed."""
    return success_probability(transition, slack) * finishes_within(transition, slack, PROBE_STEPS)


def _scaled(steps: Estimate, factor: float) -> Estimate:
    point, lo, hi = (max(1.0, n * factor) for n in (steps.point, steps.lo, steps.hi))
    return Estimate(point=point, lo=lo, hi=hi)


def assess(
    candidate: Candidate,
    calibration: Calibration,
    transition: Transition,
    demand: Demand,
    n_positions: int,
    n_passages: int,
) -> Assessment:
    """Slack, chance and cost of one candidate; the interval of seconds joins that of steps and of the step time."""
    slack = capacity_slack(calibration.law, candidate.effective_parameters, demand)
    factor = corpus_steps(n_passages, _n_batches(n_positions, BATCH_TOKENS))
    return assess_at(candidate, slack, calibration, transition, n_positions, factor)


def assess_at(
    candidate: Candidate,
    slack: float,
    calibration: Calibration,
    transition: Transition,
    n_positions: int,
    factor: float,
    step_tokens: int = BATCH_TOKENS,
) -> Assessment:
    """Chance and cost of a candidate with this slack, where an optimiser step takes so many positions.

    `factor`: steps of this corpus ÷ those of a probe of the same slack.
    """
    steps = _scaled(expected_steps(transition, slack), factor)
    positions = n_positions / _n_batches(n_positions, step_tokens)
    each = step_seconds(calibration, candidate.calibrated.layers_to_transform, positions)
    spread = 1.0 + calibration.cost.relative_spread
    setup = calibration.cost.seconds_setup
    seconds = Estimate(
        point=setup + steps.point * each, lo=(setup + steps.lo * each) / spread, hi=(setup + steps.hi * each) * spread
    )
    return Assessment(candidate, slack, chance(transition, slack), steps, seconds)


def _n_batches(n_positions: int, step_tokens: int) -> int:
    return max(1, math.ceil(n_positions / step_tokens))


def assess_all(
    calibration: Calibration,
    demand: Demand,
    n_positions: int,
    *,
    n_passages: int,
    rank: int | None = None,
    target_modules: Sequence[str] | None = None,
) -> list[Assessment]:
    """Every candidate assessed, by the transition as cautious as this corpus calls for.

    An explicit rank or module set leaves only itself.

    Raises:
        CalibrationError: the module set was not calibrated.
    """
    transition = cautious_transition(calibration, demand)
    options = candidates(calibration, rank=rank, target_modules=target_modules)
    return [assess(c, calibration, transition, demand, n_positions, n_passages) for c in options]


def cheapest(
    options: Sequence[Assessment], confidence: float, minimize: Minimize, patience: float = math.inf
) -> Assessment:
    """The cheapest of these that reaches the confidence; the one with the most capacity if none does.

    Cheapest means fewest parameters (bytes are proportional to them), then the likeliest to succeed, then fewest
    seconds, of those that take at most `patience` times as long as the fastest; or fewest seconds, then fewest
    parameters.

    Raises:
        ValueError: confidence does not lie strictly between 0 and 1.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence {confidence} does not lie strictly between 0 and 1")
    enough = [a for a in options if a.success_probability >= confidence]
    if not enough:
        return max(options, key=lambda a: (a.candidate.effective_parameters, -a.candidate.n_parameters))
    if minimize == "seconds":
        return min(enough, key=lambda a: (a.seconds.point, a.candidate.n_parameters))
    fastest = min(a.seconds.point for a in enough)
    enough = [a for a in enough if a.seconds.point <= patience * fastest]
    return min(enough, key=lambda a: (a.candidate.n_parameters, -round(a.success_probability, 2), a.seconds.point))
