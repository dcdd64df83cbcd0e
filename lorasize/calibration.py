"""The verb calibrate: probes on the user's model and device, then the law, the transition and the cost model.

The design is a short search: at the reference site, probes find how many bits a parameter holds; every other site is
then probed near that boundary, below it (a success) and above it (an unsaturated point of the law).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lorasize import __version__, adapters, models
from lorasize.catalog import calibration_path, write_calibration
from lorasize.corpus import read_corpus
from lorasize.fitting import fit_observations
from lorasize.law import SATURATED
from lorasize.probing import Execute, Journal, peak_memory, probe_passage, run_probe
from lorasize.records import (
    RECIPE,
    Calibration,
    CostModel,
    Observation,
    ProbeJob,
    ProbeKind,
    ProbeSpec,
    Reading,
    Site,
)
from lorasize.tokens import encode_corpus
from lorasize.training import base_losses
from lorasize.units import LN2, bits

Preset = Literal["quick", "standard", "thorough"]

_FIRST_RATIO: dict[Preset, float] = {"quick": 0.75, "standard": 0.6, "thorough": 0.6}  # bits a parameter, first probe
_STEPS = 100  # of a probe at most
_MIN_TOKENS = 12
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


def calibrate(
    ref: str = models.BUILTIN,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    preset: Preset = "quick",
    corpus: Sequence[Path] = (),
    seed: int = 0,
    time_limit: float | None = None,
    folder: Path = Path("calibrations"),
    execute: Execute | None = None,
    notify: Notify = lambda report: None,
) -> tuple[Calibration, Path]:
    """The calibration of a model on this device, and the file it was written to.

    An interrupted run leaves a journal beside that file; the same call goes on from it.

    Args:
        ref: The base model.
        revision: Hub revision of the model.
        device: Where to probe.
        dtype: Of the base model.
        preset: How many sites and repeats are probed.
        corpus: Text of the user's own kind, to be probed as well.
        seed: Of targets and adapters.
        time_limit: Seconds after which no further probe starts.
        folder: Where the calibration belongs.
        execute: Where independent probes run; one after another in this process when None.
        notify: Told before and after each probe.

    Raises:
        ModelError: the model cannot be loaded.
        FitError: the probes do not identify the law.
        CalibrationError: the folder cannot be written.
    """
    base = models.load(ref, revision=revision, device=device, dtype=dtype)
    path = calibration_path(ref, base.device.type, models.dtype_name(base.dtype), folder)
    sample = _sample(base, corpus)
    key = {"fingerprint": base.fingerprint.digest, "recipe": RECIPE, "device": models.device_name(base.device)}
    key |= {"dtype": models.dtype_name(base.dtype), "sample": hashlib.sha256(repr(sample).encode()).hexdigest()}
    journal = Journal(path.with_suffix(".journal.jsonl"), key)
    where = {"ref": ref, "revision": revision, "device": device, "dtype": dtype}
    run = _Run(base, journal, preset, seed, time_limit, sample, notify, where, execute)
    run.all_probes()
    timed = run.timed_alone() if execute is not None and run.observations else None
    calibration = fit(base, run.observations, ref, preset=preset, seed=seed, timed=timed)
    write_calibration(calibration, path)
    journal.remove()
    return calibration, path


def _sample(base: models.BaseModel, corpus: Sequence[Path]) -> list[int]:
    if not corpus:
        return []
    passages, _ = read_corpus(corpus)
    encoded = encode_corpus(passages, base.tokenizer, Reading(), base.max_positions)
    return [token for passage in encoded for token in passage.target_ids[:-1]]


# ---------------------------------------------------------------- sites
def calibrated_sites(base: models.BaseModel, preset: Preset) -> list[Site]:
    """Sites to probe, the reference first.

    The reference is the last linear layer of a decoder layer that widens its input (the MLP's up-projection), in one
    layer at two thirds of the depth: measured best among single layers (docs/log.md). Then come more layers around it
    and, past `quick`, the other projections.
    """
    shapes = models.linear_shapes(base.model)
    best = models.widening_module(shapes)
    sets = _layer_sets(base.n_layers, {"quick": 2, "standard": 4, "thorough": 5}[preset])
    sites = [Site(target_modules=(best,), layers_to_transform=layers) for layers in sets]
    if preset != "quick":
        others = [name for name in shapes if name != best]
        sites += [Site(target_modules=(name,), layers_to_transform=sets[0]) for name in others]
    return list(dict.fromkeys(sites))


def _layer_sets(n_layers: int, how_many: int) -> list[tuple[int, ...]]:
    """One layer at two thirds of the depth, then 2, 4, 6 and 11 layers around it (as on 30 layers, by proportion)."""
    on_30 = [(20,), (16, 20), (16, 18, 20, 22), (14, 16, 18, 20, 22, 24), tuple(range(14, 25))]
    scaled = [tuple(sorted({layer * n_layers // 30 for layer in layers})) for layers in on_30[:how_many]]
    return list(dict.fromkeys(scaled))


# ---------------------------------------------------------------- the run
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
    total: int = 0

    def all_probes(self) -> None:
        """Find the boundary at the reference site, then probe each site around it."""
        sites = calibrated_sites(self.base, self.preset)
        self.total = 3 + len(self._around(sites, _FIRST_RATIO[self.preset]))
        boundary = self._boundary(sites[0])
        self._all([self._spec(*probe) for probe in self._around(sites, boundary)])
        for ratio in (2.6, 3.2, 3.8):  # the law needs four probes that show a limit
            limited = [o for o in self.observations if not o.threshold_met]
            if sum(o.loss_reduction < SATURATED * o.base_loss for o in limited) < 4:
                self._probe(sites[0], 1, "random", ratio * boundary, self.seed + 1)

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
            ratio = held * 1.45 if observation.threshold_met else held / 2
        if not best and worst == math.inf:  # out of time before the first probe
            return _FIRST_RATIO[self.preset]
        return math.sqrt((best or worst / 2) * (worst if worst < math.inf else best * 1.45))

    def _around(self, sites: Sequence[Site], boundary: float) -> list[tuple[Site, int, ProbeKind, float, int]]:
        """Probes beyond the boundary, for the law, and below it: site, rank, kind, bits per parameter, seed."""
        reference, two = sites[0], sites[min(1, len(sites) - 1)]
        seed = self.seed + 1
        beyond, rank_two, text, spread = (2.05, 1.25, 0.85, 0.7) if self.preset == "quick" else (1.8, 1.1, 0.75, 0.8)
        probes: list[tuple[Site, int, ProbeKind, float, int]] = [
            (reference, 1, "random", beyond * boundary, seed),
            (reference, 2, "random", rank_two * boundary, seed),
            (reference, 1, "text", text * boundary, seed),
            (two, 1, "random", spread * boundary, seed),
        ]
        if self.preset == "quick":
            return probes
        for seed in range(self.seed + 2, self.seed + {"standard": 3, "thorough": 7}[self.preset]):
            probes += [(reference, 1, "random", ratio * boundary, seed) for ratio in (0.85, 1.4)]
            probes += [(reference, 2, "random", ratio * boundary, seed) for ratio in (0.8, 1.3)]
            probes += [(two, 1, "random", ratio * boundary, seed) for ratio in (0.9, 1.3)]
            probes += [(reference, 1, "text", 0.9 * boundary, seed)]
        for site in sites[2:]:
            same = site.target_modules == reference.target_modules
            probes += [(site, 1, "random", ratio * boundary, seed) for ratio in ((0.85,) if same else (0.7, 1.3))]
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
        results, begun = self.execute(jobs), time.perf_counter()
        for k in range(1, len(missing) + 1):
            if self._late():
                break
            observation = Observation.model_validate_json(next(results))
            self.journal.add(observation)
            left = (time.perf_counter() - begun) / k * (len(missing) - k)
            done = len(self.observations) + len(wanted) - len(missing) + k
            self.notify(ProbeReport(done, max(self.total, done), observation.probe, observation, left))
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
        each = sum(o.seconds for o in self.observations) / max(1, done)
        self.total = max(self.total, done + (observation is None))
        self.notify(ProbeReport(done, self.total, spec, observation, each * (self.total - done)))

    def _spec(self, site: Site, rank: int, kind: ProbeKind, ratio: float, seed: int) -> ProbeSpec:
        shapes = models.linear_shapes(self.base.model)
        wanted = ratio * adapters.count_parameters(shapes, site, rank) * LN2
        longest = self.base.max_positions // 2
        n_tokens = min(longest, max(_MIN_TOKENS, round(wanted / self._nats_per_token(kind))))
        return ProbeSpec(
            target_modules=site.target_modules,
            layers_to_transform=site.layers_to_transform,
            rank=rank,
            kind=kind,
            n_tokens=n_tokens,
            seed=seed,
            max_steps=_STEPS,
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


# ---------------------------------------------------------------- the fit
def fit(
    base: models.BaseModel,
    observations: Sequence[Observation],
    ref: str,
    *,
    preset: Preset,
    seed: int,
    timed: Sequence[Observation] | None = None,
) -> Calibration:
    """The calibration that these observations support; `timed` are those to take times from, if others shared devices.

    Raises:
        FitError: they do not identify the law.
    """
    fitted = fit_observations(observations)
    return Calibration(
        model=models.record_of(base, ref),
        recipe=RECIPE,
        device=models.device_name(base.device),
        dtype=models.dtype_name(base.dtype),
        law=fitted.law,
        sites=fitted.sites,
        transition=fitted.transition,
        cost=_cost(base, timed or observations),
        observations=tuple(observations),
        provenance=_provenance(observations, preset, seed),
    )


def _cost(base: models.BaseModel, observations: Sequence[Observation]) -> CostModel:
    """Seconds per step against positions and layers run, by least squares without negative terms."""
    layers = np.array([base.n_layers - min(o.probe.layers_to_transform) for o in observations], dtype=float)
    positions = np.array([o.probe.n_tokens for o in observations], dtype=float)
    seconds = np.array([o.seconds_per_step for o in observations])
    design = np.stack([np.ones_like(positions), positions * layers, positions], axis=1)
    terms = _non_negative(design, seconds)
    spread = float(np.std(np.log(seconds / (design @ terms)))) if len(seconds) > 3 else 0.5
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    return CostModel(
        seconds_overhead=float(terms[0]),
        seconds_per_layer_token=float(terms[1]),
        seconds_per_head_token=float(terms[2]),
        relative_spread=max(0.1, spread),
        seconds_per_forward_token=_forward_seconds(base),
        memory_base_bytes=weights,
        memory_bytes_per_token=max(0.0, (peak_memory() - weights) / float(positions.max())),
    )


def _non_negative(design: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares relative to `wanted`, terms that would be negative left out."""
    kept = list(range(design.shape[1]))
    while True:
        solution = np.linalg.lstsq(design[:, kept] / wanted[:, None], np.ones_like(wanted), rcond=None)[0]
        if (solution >= 0).all() or len(kept) == 1:
            full = np.zeros(design.shape[1])
            full[kept] = np.maximum(solution, 0.0)
            return full
        kept.pop(int(np.argmin(solution)))


def _forward_seconds(base: models.BaseModel) -> float:
    ids = torch.zeros((1, min(256, base.max_positions)), dtype=torch.long, device=base.device)
    started = time.perf_counter()
    with torch.no_grad():
        base.model(input_ids=ids, use_cache=False)
    return (time.perf_counter() - started) / ids.numel()


def _provenance(observations: Sequence[Observation], preset: Preset, seed: int) -> dict[str, str]:
    return {
        "preset": preset,
        "seed": str(seed),
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": f"{sum(o.seconds for o in observations):.0f}",
        "lorasize": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
