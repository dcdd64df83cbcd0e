"""The transition: known truth, separated data, caution, and the steps of a success."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasize.errors import FitError
from lorasize.law.transition import (
    TransitionPoint,
    effective_scale,
    expected_steps,
    fit_transition,
    success_probability,
)
from lorasize.records import Transition


def transition(**changes: float) -> Transition:
    """A transition with known numbers."""
    values = {"location": 0.1, "location_stderr": 0.1, "scale": 0.12, "n_observations": 12, "n_successes": 6}
    values |= {"steps_coefficient": 150.0, "steps_exponent": 1.2, "steps_spread": 0.2}
    return Transition.model_validate(values | changes)


def draw(n: int, rng: np.random.Generator, location: float = 0.2, scale: float = 0.15) -> list[TransitionPoint]:
    """Probes whose success follows the model exactly."""
    x = rng.uniform(-0.8, 1.2, n)
    success = rng.random(n) < 1.0 / (1.0 + np.exp(-(x - location) / scale))
    return [TransitionPoint(math.exp(v), bool(s), 100) for v, s in zip(x, success, strict=True)]


def required_slack(known: Transition, confidence: float) -> float:
    """The slack at which `success_probability` equals this confidence."""
    return math.exp(known.location + effective_scale(known) * math.log(confidence / (1.0 - confidence)))


def test_location_and_scale_are_recovered_from_many_probes() -> None:
    fit = fit_transition(draw(5_000, np.random.default_rng(3)))
    assert fit.location == pytest.approx(0.2, abs=0.03)
    assert fit.scale == pytest.approx(0.15, abs=0.03)
    assert fit.location_stderr < 0.01


@pytest.fixture(scope="module")
def drawn() -> list[tuple[float, float, Transition]]:
    """250 truths (location, scale) drawn from the priors, each with the fit of 16 probes: there, bands are exact."""
    rng, found = np.random.default_rng(5), []
    for _ in range(250):
        location, scale = rng.normal(), math.exp(rng.normal(math.log(0.15), 0.7))
        x = rng.uniform(-3.0, 3.0, 16)
        success = rng.random(16) < 1.0 / (1.0 + np.exp(-(x - location) / scale))
        points = [TransitionPoint(math.exp(v), bool(s), 9) for v, s in zip(x, success, strict=True)]
        if success.any():
            found.append((location, scale, fit_transition(points)))
    return found


@pytest.mark.slow
def test_the_locations_interval_covers_at_its_nominal_rate(drawn: list[tuple[float, float, Transition]]) -> None:
    covered = [abs(fit.location - location) <= 1.645 * fit.location_stderr for location, _, fit in drawn]
    assert 0.85 <= np.mean(covered) <= 0.95


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_what_is_called_likely_comes_true_as_often(
    drawn: list[tuple[float, float, Transition]], confidence: float
) -> None:
    needed = [(math.log(required_slack(fit, confidence)) - location) / scale for location, scale, fit in drawn]
    assert np.mean(1.0 / (1.0 + np.exp(-np.array(needed)))) == pytest.approx(confidence, abs=0.05)


def test_separated_data_give_a_finite_location_between_the_groups() -> None:
    points = [TransitionPoint(s, s > 1.1, 80) for s in (0.6, 0.8, 1.0, 1.3, 1.6, 2.0)]
    fit = fit_transition(points)
    assert math.log(1.0) < fit.location < math.log(1.3)
    assert 0.02 < fit.scale < 0.3
    assert 0.0 < fit.location_stderr < 0.5
    assert (fit.n_observations, fit.n_successes) == (6, 3)


def test_nothing_but_successes_or_a_useless_prediction_stay_finite() -> None:
    fit = fit_transition([TransitionPoint(s, True, 60) for s in (1.5, 2.0, 3.0)])
    assert fit.location < math.log(1.5)
    below = fit_transition([TransitionPoint(-0.2, False, 60), TransitionPoint(2.0, True, 60)])
    assert math.isfinite(below.location_stderr)
    assert success_probability(below, -5.0) < 0.05


@pytest.mark.parametrize("points", [[], [TransitionPoint(1.0, False, 50)]])
def test_without_a_success_nothing_is_identified(points: list[TransitionPoint]) -> None:
    with pytest.raises(FitError) as caught:
        fit_transition(points)
    assert caught.value.unidentified == ("location",)


def test_fewer_probes_ask_for_more_slack() -> None:
    slacks = (0.6, 0.8, 0.95, 1.3, 1.6, 2.0)
    few = [TransitionPoint(s, s > 1.1, 80) for s in slacks]
    assert required_slack(fit_transition(few), 0.9) > 1.05 * required_slack(fit_transition(few * 8), 0.9)


def test_the_integral_over_the_location_is_the_one_by_quadrature() -> None:
    known = transition(location_stderr=0.2, scale=0.1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    for slack in (0.8, 1.2, 1.5, 2.0):
        z = (math.log(slack) - known.location - 0.2 * nodes) / 0.1
        exact = float((weights / (1.0 + np.exp(-z))).sum() / weights.sum())
        assert success_probability(known, slack) == pytest.approx(exact, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 0.99), st.floats(0.0, 1.0), st.floats(0.02, 1.0), st.floats(0.05, 20.0), st.floats(1.001, 3.0))
def test_required_slack_inverts_a_monotone_probability(
    confidence: float, stderr: float, scale: float, slack: float, factor: float
) -> None:
    known = transition(location_stderr=stderr, scale=scale)
    needed = required_slack(known, confidence)
    if needed > 1e-3:
        assert success_probability(known, needed) == pytest.approx(confidence, rel=1e-9)
    assert success_probability(known, slack) <= success_probability(known, slack * factor)


def test_steps_are_recovered_to_six_digits_and_fall_with_slack() -> None:
    points = [TransitionPoint(1.0, False, 400)]
    points += [TransitionPoint(s, True, 240_000 // (2400 * k)) for s, k in ((1.0, 1), (2.0, 2), (4.0, 4), (5.0, 5))]
    fit = fit_transition(points)
    assert fit.steps_exponent == pytest.approx(1.0, rel=1e-6)
    assert fit.steps_coefficient == pytest.approx(100.0, rel=1e-6)
    assert fit.steps_spread == 0.15
    assert expected_steps(fit, 2.0).point == pytest.approx(50.0, rel=1e-6)
    assert expected_steps(fit, 1e9).point == pytest.approx(20.0, rel=1e-6)  # no fewer than where it was last seen


def test_step_intervals_cover_at_their_nominal_rate() -> None:
    rng = np.random.default_rng(9)
    slack = np.exp(rng.uniform(0.3, 1.5, 400))
    steps = np.rint(3000.0 * slack**-1.4 * np.exp(rng.normal(0.0, 0.3, 400))).astype(int)
    fit = fit_transition([TransitionPoint(float(s), True, int(n)) for s, n in zip(slack, steps, strict=True)])
    assert fit.steps_exponent == pytest.approx(1.4, abs=0.1)
    bands = [expected_steps(fit, float(s)) for s in slack]
    assert 0.86 <= np.mean([b.lo <= n <= b.hi for b, n in zip(bands, steps, strict=True)]) <= 0.94


def test_a_rising_or_absurd_exponent_is_clipped() -> None:
    rising = fit_transition([TransitionPoint(s, True, int(50 * s)) for s in (1.0, 2.0, 4.0)])
    assert rising.steps_exponent == 0.0
    steep = fit_transition([TransitionPoint(s, True, max(1, int(5000 * s**-5))) for s in (1.0, 1.5, 2.0)])
    assert steep.steps_exponent == 4.0


def test_one_success_leaves_the_steps_wide() -> None:
    fit = fit_transition([TransitionPoint(2.0, True, 60), TransitionPoint(0.5, False, 400)])
    assert fit.steps_spread == 0.4
    assert expected_steps(fit, 2.0).point == pytest.approx(60.0)
