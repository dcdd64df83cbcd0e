"""Which probe next: against worlds whose law is known."""

from __future__ import annotations

import math
import random

import pytest

from lorasize.law.form import soft_capped
from lorasize.law.next_probes import next_probes, work_of
from lorasize.law.observations import Fitted, fit_observations
from lorasize.records import LAW_STEPS, PROBE_STEPS, Observation, ProbeSpec, Site

REFERENCE_LOSS = 13.7
UP, TWO, DOWN, QUERY = (
    Site(target_modules=(name,), layers_to_transform=layers)
    for name, layers in (("up_proj", (20,)), ("up_proj", (16, 20)), ("down_proj", (20,)), ("q_proj", (20,)))
)
SITES = (UP, TWO, DOWN, QUERY)
PER_RANK = {UP: 2112, TWO: 4224, DOWN: 2112, QUERY: 1152}
LAYERS_RUN = {UP: 10, TWO: 14, DOWN: 10, QUERY: 10}
TRUE = {UP: 1.0, TWO: 1.1, DOWN: 0.4, QUERY: 0.02}
LIMITS = (12, 1024)


def observe(site: Site, rank: int, n_tokens: int, seed: int) -> Observation:
    """A probe in a world where ΔL = 1.3 N^0.9 ℓ^-0.96 + 2, bent, and recall needs a slack of 1.2, give or take."""
    draw = random.Random(seed)
    n = rank * PER_RANK[site]
    slack = (1.3 * (n * TRUE[site]) ** 0.9 * n_tokens**-0.96 + 2.0) / REFERENCE_LOSS
    share = soft_capped(max(slack, 0.0)) * math.exp(draw.gauss(0.0, 0.01))
    success = math.log(slack) + draw.gauss(0.0, 0.05) > math.log(1.2)
    steps = round(min(PROBE_STEPS, 150 * slack**-1.5)) if success else LAW_STEPS
    spec = ProbeSpec(
        target_modules=site.target_modules,
        layers_to_transform=site.layers_to_transform,
        rank=rank,
        kind="random",
        n_tokens=n_tokens,
        seed=seed,
        max_steps=PROBE_STEPS,
    )
    lost = min(share, 0.999) * REFERENCE_LOSS
    return Observation(
        probe=spec,
        n_parameters=n,
        base_loss=REFERENCE_LOSS,
        final_loss=REFERENCE_LOSS - lost,
        loss_reduction=lost,
        n_stubborn=0 if success else n_tokens,
        threshold_met=success,
        steps=steps,
        seconds=1.0,
        seconds_per_step=0.1,
        peak_memory_bytes=1,
    )


START = [(UP, 1, 80), (UP, 1, 108), (UP, 1, 146), (UP, 1, 220), (UP, 1, 330), (UP, 2, 300), (TWO, 1, 180)]


def run(rounds: int) -> tuple[list[tuple[Site, int, int]], Fitted]:
    """The probes chosen after the start, and what all observations say."""
    observations = [observe(*probe, seed) for seed, probe in enumerate(START)]
    chosen: list[tuple[Site, int, int]] = []
    for _ in range(rounds):
        found = next_probes(fit_observations(observations), SITES, PER_RANK, LAYERS_RUN, LIMITS, 3, 1e9)
        observations += [observe(*probe, 100 + len(observations)) for probe in found]
        chosen += found
    return chosen, fit_observations(observations)


def test_every_site_is_probed_and_the_promising_ones_most() -> None:
    chosen, fitted = run(5)
    assert {site for site, _, _ in chosen} >= {DOWN, QUERY}
    known = {s.site: s for s in fitted.sites}
    two = known[TWO]
    assert abs(two.efficiency - TRUE[TWO]) < 3 * two.stderr + 0.1
    late = chosen[9:]
    assert sum(site == QUERY for site, _, _ in late) <= 1  # known to be useless by now


def test_more_probes_make_the_boundary_better_known() -> None:
    few, many = run(0)[1], run(5)[1]
    assert many.transition.location_stderr < few.transition.location_stderr
    assert many.transition.location == pytest.approx(math.log(1.2), abs=0.1)


def test_the_same_observations_ask_for_the_same_probes() -> None:
    assert run(2)[0] == run(2)[0]


def test_texts_stay_within_their_limits_and_work_within_what_is_left() -> None:
    fitted = run(1)[1]
    found = next_probes(fitted, SITES, PER_RANK, LAYERS_RUN, (40, 90), 6, 1e9)
    assert len(found) == 6
    assert all(40 <= tokens <= 90 for _, _, tokens in found)
    assert next_probes(fitted, SITES, PER_RANK, LAYERS_RUN, LIMITS, 6, 0.0) == []


def test_work_counts_layers_tokens_and_steps() -> None:
    assert work_of(100, 10, 50.0) == 50.0 * (100 * 11 + 650.0)
    assert work_of(200, 10, 50.0) > work_of(100, 10, 50.0)
