"""One calibration's search: probes around the boundary first, then those that tell most for their work.

A short search at the reference site finds how many bits a parameter holds, a few probes around that boundary make the
law fittable, and then each round runs the probes that most reduce what is not known of the recommended size
(lorasize.law.next_probes), until the preset's budget is spent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lorasize import models
from lorasize.errors import FitError
from lorasize.law.form import SATURATED
from lorasize.law.next_probes import next_probes, work_of
from lorasize.law.observations import fit_observations
from lorasize.losses.base import base_losses
from lorasize.models import adapters
from lorasize.probing.bounded import bounded_specs
from lorasize.probing.executors import Execute
from lorasize.probing.journal import Journal
from lorasize.probing.presets import Preset
from lorasize.probing.probes import probe_passage, run_probe
from lorasize.probing.sites import calibrated_sites
from lorasize.records import Observation, ProbeJob, ProbeKind, ProbeSpec, Site
from lorasize.units import LN2, bits

# The first probes. Ratios are bits per parameter, shares are of the boundary that the very first find. Not tuned.
_BOUNDARY_PROBES = 4  # at most, to find the boundary
_WIDER = 1.35  # factor to the ratio after a success
_NARROWER = 0.5  # factor to the ratio after a failure
_BEYOND = 1.5  # share of probes that are meant to show a limit
_FURTHER_BEYOND = (2.2, 2.8, 3.4)  # shares tried while too few probes show a limit
_SAMPLE_SHARES = (0.9, 1.1)  # on both sides, on the user's own text
_LIMITS_NEEDED = 4  # probes that show a limit: the law has four parameters
_FIRST_LOOK = 96  # tokens of text whose base loss is taken before any of that kind was probed

# All probes.
_MIN_TOKENS = 12  # not tuned; docs/log/plans.md#priors-on-small-models-negative went down to it
_SHORTEST = 48  # tokens of a probe once the law can be fitted: docs/log/law.md#probes-of-few-tokens-negative
_ROUND = 4  # probes chosen together, wherever they run; not tuned
_COMPARED = 2  # probes whose steps are timed without a bound, too; not tuned
_TIMED = 8  # steps that show what one costs; not tuned
_GUESSED_PROBES = 8  # that the budget is taken to allow before the first one has ended; not tuned


@dataclass(frozen=True)
class ProbeReport:
    """Progress of a calibration. `observation` is None while the probe runs; `seconds_left` is a rough guess."""

    done: int
    total: int
    spec: ProbeSpec
    observation: Observation | None
    seconds_left: float


ProbeListener = Callable[[ProbeReport], None]


def shows_a_limit(observation: Observation) -> bool:
    """Whether the law learns from a probe more than that its adapter held at least so much."""
    return not observation.censored and observation.early_reduction < SATURATED * observation.base_loss


class Aim(NamedTuple):
    """A probe by what its text asks, before the text is cut: `ratio` bits per parameter."""

    site: Site
    rank: int
    kind: ProbeKind
    ratio: float
    seed: int


@dataclass
class Search:
    """The probes of one calibration: which come next, and what they observed so far."""

    base: models.BaseModel
    journal: Journal
    preset: Preset
    seed: int
    time_limit: float | None
    sample: Sequence[int]
    notify: ProbeListener
    where: dict[str, str | None]  # what a worker needs to load the model
    execute: Execute | None
    observations: list[Observation] = field(default_factory=list)
    planned: int | None = None  # probes in all, once that is known
    started: float = field(default_factory=time.perf_counter)

    def all_probes(self) -> None:
        """Find the boundary at the reference site, probe around it, then what tells most until the budget is spent."""
        sites = calibrated_sites(self.base, self.preset)
        boundary = self._boundary(sites[0])
        self.observe_all([self._spec(aim) for aim in self._around(sites, boundary)])
        self._identify(sites[0], boundary)
        while self._work_left() > 0 and len(self.observations) < self.preset.max_probes and not self.out_of_time():
            before = len(self.observations)
            self.observe_all(self._next_round(sites))
            if len(self.observations) == before:
                break

    def bounded_probes(self, max_drift: float) -> None:
        """Probe under a bound on drift."""
        specs = list(bounded_specs(self.base, self.preset.name, max_drift, self._nats_per_token, self.spec_at))
        self.planned = len(self.observations) + len(specs)
        self.observe_all(specs)

    def compared(self) -> list[tuple[Observation, Observation]]:
        """The first probes under a bound, each beside a few of its steps without one."""
        probes = [o for o in self.observations if o.probe.max_drift is not None][:_COMPARED]
        free = [o.probe.model_copy(update={"max_drift": None, "max_steps": _TIMED}) for o in probes]
        return [(o, run_probe(self.base, spec, self.sample)) for o, spec in zip(probes, free, strict=True)]

    def _boundary(self, site: Site) -> float:
        """Bits per parameter between the largest success and the smallest failure at rank 1, from up to four probes.

        The geometric mean of both. Where all failed, or none did, the other side is taken to be a step further.
        """
        ratio, low, high = self.preset.first_ratio, 0.0, math.inf
        for _ in range(_BOUNDARY_PROBES):
            observation = self._observe(self._spec(Aim(site, 1, "random", ratio, self.seed)))
            if observation is None:
                break
            asked = bits(observation.nats) / observation.n_parameters
            if observation.threshold_met:
                low, ratio = max(low, asked), asked * _WIDER
            else:
                high, ratio = min(high, asked), asked * _NARROWER
            if low and high < math.inf:
                break
        if not low and high == math.inf:  # out of time before the first probe
            return self.preset.first_ratio
        low = low or high * _NARROWER
        high = high if high < math.inf else low * _WIDER
        return math.sqrt(low * high)

    def _around(self, sites: Sequence[Site], boundary: float) -> list[Aim]:
        """Probes beyond the boundary, for the law, and below it."""
        reference, more_layers = sites[0], sites[min(1, len(sites) - 1)]
        preset, seed = self.preset, self.seed + 1
        aims = [
            Aim(reference, 1, "random", _BEYOND * boundary, seed),
            Aim(reference, 2, "random", preset.rank_two_share * boundary, seed),
            Aim(reference, 1, "text", preset.text_share * boundary, seed),
            Aim(more_layers, 1, "random", preset.more_layers_share * boundary, seed),
        ]
        if preset.second_text_share is not None:
            aims.append(Aim(reference, 1, "text", preset.second_text_share * boundary, seed + 1))
        if self.sample:
            aims += [Aim(more_layers, 1, "text", share * boundary, seed + 2) for share in _SAMPLE_SHARES]
        return aims

    def _identify(self, site: Site, boundary: float) -> None:
        """Probe further beyond the boundary where what was observed leaves the law open."""
        limited = [o for o in self.observations if o.probe.site == site and shows_a_limit(o)]
        if len({o.n_parameters for o in limited}) < 2:  # the law needs two ranks that show a limit
            self._observe(self._spec(Aim(site, 2, "random", _BEYOND * boundary, self.seed + 1)))
        for share in _FURTHER_BEYOND:
            if sum(shows_a_limit(o) for o in self.observations) < _LIMITS_NEEDED:
                self._observe(self._spec(Aim(site, 1, "random", share * boundary, self.seed + 1)))

    def _next_round(self, sites: Sequence[Site]) -> list[ProbeSpec]:
        """The probes that tell most for their work; none when the law cannot be fitted, which the end will say."""
        shapes = models.linear_shapes(self.base.model)
        try:
            fitted = fit_observations(self.observations)
        except FitError:
            return []
        probes = next_probes(
            fitted,
            sites,
            {site: adapters.count_parameters(shapes, site, 1) for site in sites},
            {site: self.base.n_layers - min(site.layers_to_transform) for site in sites},
            (_SHORTEST, self.base.max_positions // 2),
            min(_ROUND, self.preset.max_probes - len(self.observations)),
            self._work_left(),
        )
        seed = self.seed + len(self.observations)
        return [self.spec_at(*probe, "random", seed + k) for k, probe in enumerate(probes)]

    def observe_all(self, specs: Sequence[ProbeSpec]) -> None:
        """Observe every spec, here one after another or wherever probes are executed."""
        if self.execute is None:
            for spec in specs:
                self._observe(spec)
            return
        wanted = list(dict.fromkeys(specs))
        missing = [spec for spec in wanted if self.journal.get(spec) is None]
        jobs = [ProbeJob.model_validate({**self.where, "spec": s, "sample": tuple(self.sample)}) for s in missing]
        results = self.execute(jobs)
        for k in range(1, len(missing) + 1):
            if self.out_of_time():
                break
            observation = Observation.model_validate_json(next(results))
            self.journal.add(observation)
            done = len(self.observations) + len(wanted) - len(missing) + k
            self.notify(ProbeReport(done, self._total(done), observation.probe, observation, self._seconds_left()))
        known = [self.journal.get(spec) for spec in wanted]
        self.observations += [o for o in known if o is not None and o not in self.observations]

    def _observe(self, spec: ProbeSpec) -> Observation | None:
        """Run a probe, or take it from the journal; None out of time."""
        known = self.journal.get(spec)
        if known is None:
            if self.out_of_time():
                return None
            self.report(spec, None)
            known = run_probe(self.base, spec, self.sample)
            self.journal.add(known)
        if known not in self.observations:  # at the shortest or longest text, two ratios are one probe
            self.observations.append(known)
            self.report(spec, known)
        return known

    def timed_alone(self) -> list[Observation]:
        """A few steps of the shortest probe and of the longest at each depth, with the device to themselves."""
        by_size = sorted(self.observations, key=lambda o: o.probe.n_tokens)
        chosen = {min(o.probe.layers_to_transform): o.probe for o in by_size}  # the longest at each depth
        specs = [by_size[0].probe, *chosen.values()]
        return [run_probe(self.base, s.model_copy(update={"max_steps": _TIMED}), self.sample) for s in specs]

    def out_of_time(self) -> bool:
        """Whether the caller's time limit has passed, so that no further probe starts."""
        return self.time_limit is not None and time.perf_counter() - self.started > self.time_limit

    def report(self, spec: ProbeSpec, observation: Observation | None) -> None:
        """Tell the listener that a probe begins, or what it observed."""
        done = len(self.observations)
        total = self._total(done + (observation is None))
        self.notify(ProbeReport(done, total, spec, observation, self._seconds_left()))

    def _total(self, at_least: int) -> int:
        """Probes in all: as planned, or as the budget and the work of those behind us suggest."""
        if self.planned is not None:
            return max(at_least, self.planned)
        budget = self.preset.budget
        spent = budget - self._work_left()
        each = spent / len(self.observations) if self.observations else budget / _GUESSED_PROBES
        return max(at_least, min(self.preset.max_probes, math.ceil(budget / each)))

    def _seconds_left(self) -> float:
        """By the work behind us and before us, or by the probes."""
        if self.planned is not None:
            n = len(self.observations)
            return sum(o.seconds for o in self.observations) / max(1, n) * max(0, self.planned - n)
        spent = self.preset.budget - self._work_left()
        return sum(o.seconds for o in self.observations) / max(1.0, spent) * max(0.0, self._work_left())

    def _work_left(self) -> float:
        """Layer-tokens of the preset's budget that the probes so far have left."""
        n = self.base.n_layers
        runs = ((o.probe, o.steps) for o in self.observations)
        return self.preset.budget - sum(
            work_of(probe.n_tokens, n - min(probe.layers_to_transform), steps) for probe, steps in runs
        )

    def _spec(self, aim: Aim) -> ProbeSpec:
        """The probe whose text, cut to the limits of length, asks the aim's ratio."""
        shapes = models.linear_shapes(self.base.model)
        wanted = aim.ratio * adapters.count_parameters(shapes, aim.site, aim.rank) * LN2
        longest = self.base.max_positions // 2
        n_tokens = min(longest, max(_MIN_TOKENS, round(wanted / self._nats_per_token(aim.kind))))
        return self.spec_at(aim.site, aim.rank, n_tokens, aim.kind, aim.seed)

    def spec_at(self, site: Site, rank: int, n_tokens: int, kind: ProbeKind, seed: int) -> ProbeSpec:
        """The probe of this many tokens at a site."""
        return ProbeSpec(
            target_modules=site.target_modules,
            layers_to_transform=site.layers_to_transform,
            rank=rank,
            kind=kind,
            n_tokens=n_tokens,
            seed=seed,
            max_steps=self.preset.max_steps,
        )

    def _nats_per_token(self, kind: ProbeKind) -> float:
        """Base loss of this kind of text: measured when seen before, else a first look without training."""
        seen = [o.base_loss for o in self.observations if o.probe.kind == kind]
        if seen:
            return sum(seen) / len(seen)
        nowhere = Site(target_modules=(), layers_to_transform=())
        spec = self.spec_at(nowhere, 1, _FIRST_LOOK, kind, self.seed)
        return float(base_losses(self.base, [probe_passage(self.base, spec, self.sample)])[0].mean())
