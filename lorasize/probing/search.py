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

from lorasize import models
from lorasize.errors import FitError
from lorasize.law.form import SATURATED
from lorasize.law.next_probes import next_probes, work_of
from lorasize.law.observations import fit_observations
from lorasize.losses.base import base_losses
from lorasize.models import adapters
from lorasize.probing.executors import Execute
from lorasize.probing.journal import Journal
from lorasize.probing.probes import probe_passage, run_probe
from lorasize.probing.sites import Preset, calibrated_sites
from lorasize.records import (
    PROBE_STEPS,
    Observation,
    ProbeJob,
    ProbeKind,
    ProbeSpec,
    Site,
)
from lorasize.units import LN2, bits

_FIRST_RATIO: dict[Preset, float] = {"quick": 1.0, "standard": 0.75, "thorough": 0.75}  # bits a parameter, first probe


_WIDER = 1.35  # factor to the next one, while they succeed


_BUDGET: dict[Preset, float] = {"quick": 2.2e6, "standard": 10e6, "thorough": 36e6}  # layer-tokens (lorasize.design)


_STEPS: dict[Preset, int] = {"quick": 200, "standard": PROBE_STEPS, "thorough": PROBE_STEPS}  # of a probe at most


_ROUND = 4  # probes chosen together, wherever they run


_MOST: dict[Preset, int] = {"quick": 10, "standard": 40, "thorough": 120}  # probes, where the budget allows for more


_MIN_TOKENS = 12


_SHORTEST = 48  # tokens of a probe once the law can be fitted: shorter ones say little about corpora


_TIMED = 8  # steps that show what one costs


@dataclass(frozen=True)
class ProbeReport:
    """Progress of a calibration. `observation` is None while the probe runs; `seconds_left` is a rough guess."""

    done: int
    total: int
    spec: ProbeSpec
    observation: Observation | None
    seconds_left: float


Notify = Callable[[ProbeReport], None]


def shows_a_limit(observation: Observation) -> bool:
    """Whether the law learns from a probe more than that its adapter held at least so much."""
    return not observation.censored and observation.early_reduction < SATURATED * observation.base_loss


@dataclass
class _Run:
    """One calibration under way."""

    base: models.BaseModel
    journal: Journal
    preset: Preset
    seed: int
    time_limit: float | None
    sample: Sequence[int]
    notify: Notify
    where: dict[str, str | None]  # what a worker needs to load the model
    execute: Execute | None
    observations: list[Observation] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def all_probes(self) -> None:
        """Find the boundary at the reference site, then probe each site around it."""
        sites = calibrated_sites(self.base, self.preset)
        boundary = self._boundary(sites[0])
        self._all([self._spec(*probe) for probe in self._around(sites, boundary)])
        if len({o.n_parameters for o in self._limited(sites[0])}) < 2:  # the law needs two ranks that show a limit
            self._probe(sites[0], 2, "random", 1.5 * boundary, self.seed + 1)
        for ratio in (2.2, 2.8, 3.4):  # the law needs four probes that show a limit
            if sum(shows_a_limit(o) for o in self.observations) < 4:
                self._probe(sites[0], 1, "random", ratio * boundary, self.seed + 1)
        while self._work_left() > 0 and len(self.observations) < _MOST[self.preset] and not self._late():
            before = len(self.observations)
            self._all(self._next(sites))
            if len(self.observations) == before:
                break

    def _limited(self, site: Site) -> list[Observation]:
        return [o for o in self.observations if o.probe.site == site and shows_a_limit(o)]

    def _next(self, sites: Sequence[Site]) -> list[ProbeSpec]:
        """The probes of the next round; none when the law cannot be fitted, which the end will say."""
        shapes = models.linear_shapes(self.base.model)
        try:
            fitted = fit_observations(self.observations)
        except FitError:
            return []
        found = next_probes(
            fitted,
            sites,
            {site: adapters.count_parameters(shapes, site, 1) for site in sites},
            {site: self.base.n_layers - min(site.layers_to_transform) for site in sites},
            (_SHORTEST, self.base.max_positions // 2),
            min(_ROUND, _MOST[self.preset] - len(self.observations)),
            self._work_left(),
        )
        seed = self.seed + len(self.observations)
        return [self._spec_of(*probe, "random", seed + k) for k, probe in enumerate(found)]

    def _work_left(self) -> float:
        n = self.base.n_layers
        runs = ((o.probe, o.steps) for o in self.observations)
        return _BUDGET[self.preset] - sum(
            work_of(probe.n_tokens, n - min(probe.layers_to_transform), steps) for probe, steps in runs
        )

    def _boundary(self, site: Site) -> float:
        """Bits per parameter between the last success and the first failure at rank 1, from up to four probes."""
        ratio, best, worst = _FIRST_RATIO[self.preset], 0.0, math.inf
        for _ in range(4):
            observation = self._probe(site, 1, "random", ratio, self.seed)
            if observation is None:
                break
            held = bits(observation.nats) / observation.n_parameters
            if observation.threshold_met:
                best = max(best, held)
            else:
                worst = min(worst, held)
            if best and worst < math.inf:
                break
            ratio = held * _WIDER if observation.threshold_met else held / 2
        if not best and worst == math.inf:  # out of time before the first probe
            return _FIRST_RATIO[self.preset]
        return math.sqrt((best or worst / 2) * (worst if worst < math.inf else best * _WIDER))

    def _around(self, sites: Sequence[Site], boundary: float) -> list[tuple[Site, int, ProbeKind, float, int]]:
        """Probes beyond the boundary, for the law, and below it: site, rank, kind, bits per parameter, seed."""
        reference, two = sites[0], sites[min(1, len(sites) - 1)]
        seed = self.seed + 1
        # a short calibration has no time for both sides at rank 2, nor for successes that take long
        rank_two, text, spread = (1.25, 0.5, 0.6) if self.preset == "quick" else (0.8, 0.7, 0.75)
        probes: list[tuple[Site, int, ProbeKind, float, int]] = [
            (reference, 1, "random", 1.5 * boundary, seed),
            (reference, 2, "random", rank_two * boundary, seed),
            (reference, 1, "text", text * boundary, seed),
            (two, 1, "random", spread * boundary, seed),
        ]
        if self.preset != "quick":
            probes.append((reference, 1, "text", 0.9 * boundary, seed + 1))
        if self.sample:
            probes += [(two, 1, "text", ratio * boundary, seed + 2) for ratio in (0.9, 1.1)]
        return probes

    def _all(self, specs: Sequence[ProbeSpec]) -> None:
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
            if self._late():
                break
            observation = Observation.model_validate_json(next(results))
            self.journal.add(observation)
            done = len(self.observations) + len(wanted) - len(missing) + k
            self.notify(ProbeReport(done, self._total(done), observation.probe, observation, self._seconds_left()))
        known = [self.journal.get(spec) for spec in wanted]
        self.observations += [o for o in known if o is not None and o not in self.observations]

    def _probe(self, site: Site, rank: int, kind: ProbeKind, ratio: float, seed: int) -> Observation | None:
        """Run a probe whose text needs `ratio` bits per parameter, or take it from the journal; None out of time."""
        return self._observe(self._spec(site, rank, kind, ratio, seed))

    def _observe(self, spec: ProbeSpec) -> Observation | None:
        known = self.journal.get(spec)
        if known is None:
            if self._late():
                return None
            self._tell(spec, None)
            known = run_probe(self.base, spec, self.sample)
            self.journal.add(known)
        if known not in self.observations:  # at the shortest or longest text, two ratios are one probe
            self.observations.append(known)
            self._tell(spec, known)
        return known

    def _late(self) -> bool:
        return self.time_limit is not None and time.perf_counter() - self.started > self.time_limit

    def timed_alone(self) -> list[Observation]:
        """A few steps of the shortest probe and of the longest at each depth, with the device to themselves."""
        by_size = sorted(self.observations, key=lambda o: o.probe.n_tokens)
        chosen = {min(o.probe.layers_to_transform): o.probe for o in by_size}  # the longest at each depth
        specs = [by_size[0].probe, *chosen.values()]
        return [run_probe(self.base, s.model_copy(update={"max_steps": _TIMED}), self.sample) for s in specs]

    def _tell(self, spec: ProbeSpec, observation: Observation | None) -> None:
        done = len(self.observations)
        total = self._total(done + (observation is None))
        self.notify(ProbeReport(done, total, spec, observation, self._seconds_left()))

    def _total(self, at_least: int) -> int:
        """Probes in all, as the budget and the work of those behind us suggest."""
        spent = _BUDGET[self.preset] - self._work_left()
        each = spent / len(self.observations) if self.observations else _BUDGET[self.preset] / 8
        return max(at_least, min(_MOST[self.preset], math.ceil(_BUDGET[self.preset] / each)))

    def _seconds_left(self) -> float:
        """By the work behind us and before us."""
        spent = _BUDGET[self.preset] - self._work_left()
        return sum(o.seconds for o in self.observations) / max(1.0, spent) * max(0.0, self._work_left())

    def _spec(self, site: Site, rank: int, kind: ProbeKind, ratio: float, seed: int) -> ProbeSpec:
        shapes = models.linear_shapes(self.base.model)
        wanted = ratio * adapters.count_parameters(shapes, site, rank) * LN2
        longest = self.base.max_positions // 2
        n_tokens = min(longest, max(_MIN_TOKENS, round(wanted / self._nats_per_token(kind))))
        return self._spec_of(site, rank, n_tokens, kind, seed)

    def _spec_of(self, site: Site, rank: int, n_tokens: int, kind: ProbeKind, seed: int) -> ProbeSpec:
        return ProbeSpec(
            target_modules=site.target_modules,
            layers_to_transform=site.layers_to_transform,
            rank=rank,
            kind=kind,
            n_tokens=n_tokens,
            seed=seed,
            max_steps=_STEPS[self.preset],
        )

    def _nats_per_token(self, kind: ProbeKind) -> float:
        """Base loss of this kind of text: measured when seen before, else a first look without training."""
        seen = [o.base_loss for o in self.observations if o.probe.kind == kind]
        if seen:
            return sum(seen) / len(seen)
        spec = ProbeSpec(
            target_modules=(), layers_to_transform=(), rank=1, kind=kind, n_tokens=96, seed=self.seed, max_steps=1
        )
        return float(base_losses(self.base, [probe_passage(self.base, spec, self.sample)])[0].mean())
