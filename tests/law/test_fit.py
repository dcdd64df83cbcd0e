"""Known truth, coverage, degenerate designs, and the paper's own points."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student
from support.paths import ROOT

from lorasize.errors import FitError
from lorasize.law.fit import Fit, LawPoint, fit_law
from lorasize.law.form import in_range, predict, predict_gradient, required_parameters, soft_capped
from lorasize.records import Law

EFFICIENCIES = (1.0, 0.45, 2.2)
CEILING = 14.0


def true_reduction(site: int, n: float, tokens: float) -> float:
    """ΔL of the synthetic law."""
    effective = EFFICIENCIES[site] * n
    return float(0.31 * effective**0.66 * tokens**-0.58 - 0.4)


def design(
    sites: tuple[int, ...] = (0, 1, 2),
    ranks: tuple[int, ...] = (1, 2, 4),
    lengths: tuple[int, ...] = (96, 192, 384),
) -> list[LawPoint]:
    """A full factorial without noise; 2,000 parameters a rank."""
    cells = itertools.product(sites, ranks, lengths)
    return [LawPoint(s, 2000.0 * r, ell, true_reduction(s, 2000.0 * r, ell)) for s, r, ell in cells]


def with_noise(points: list[LawPoint], rng: np.random.Generator, sigma: float) -> list[LawPoint]:
    """The same points, measured with Gaussian error."""
    noise = rng.normal(0.0, sigma, len(points))
    pairs = zip(points, noise, strict=True)
    return [LawPoint(p.site_index, p.n_parameters, p.n_tokens, p.loss_reduction + e) for p, e in pairs]


def as_law(**changes: float) -> Law:
    """A law record with known coefficients."""
    values = {"coefficient": 0.31, "parameter_exponent": 0.66, "length_exponent": 0.58, "offset": -0.4} | changes
    zero = tuple((0.0,) * 4 for _ in range(4))
    return Law(
        **values,
        covariance=zero,
        r_squared=1.0,
        form="",
        reference_loss=CEILING,
        residual_stderr=0.2,
        n_observations=9,
        parameters_range=(1000.0, 10000.0),
        tokens_range=(100.0, 400.0),
    )


def test_noise_free_truth_is_recovered_to_six_digits() -> None:
    points = design()
    fit = fit_law(points, reference_loss=40.0)
    assert fit.law.coefficient == pytest.approx(0.31, rel=1e-6)
    assert fit.law.parameter_exponent == pytest.approx(0.66, rel=1e-6)
    assert fit.law.length_exponent == pytest.approx(0.58, rel=1e-6)
    assert fit.law.offset == pytest.approx(-0.4, rel=1e-6)
    assert [e for e, _ in fit.efficiencies] == pytest.approx(EFFICIENCIES, rel=1e-6)
    assert fit.law.r_squared == pytest.approx(1.0, abs=1e-9)
    assert fit.residuals == pytest.approx([0.0] * len(points), abs=1e-7)


@pytest.mark.parametrize(("alpha", "beta", "offset"), [(0.3, 1.1, 0.5), (1.2, 0.3, 0.0), (0.9, 0.9, -1.0)])
def test_other_truths_are_recovered_too(alpha: float, beta: float, offset: float) -> None:
    law = as_law(parameter_exponent=alpha, length_exponent=beta, offset=offset)
    cells = itertools.product((2e3, 4e3, 8e3), (100, 200, 400))
    points = [LawPoint(0, n, ell, predict(law, n, ell)) for n, ell in cells]
    fitted = fit_law(points, reference_loss=1e9).law
    found = (fitted.coefficient, fitted.parameter_exponent, fitted.length_exponent, fitted.offset)
    assert found == pytest.approx((0.31, alpha, beta, offset), rel=1e-6, abs=1e-6)


def test_ranges_are_those_of_the_points_in_effective_parameters() -> None:
    law = fit_law(design(), reference_loss=40.0).law
    assert law.parameters_range == pytest.approx((0.45 * 2000, 2.2 * 8000), rel=1e-5)
    assert law.tokens_range == pytest.approx((96, 384), rel=1e-9)


def test_required_parameters_inverts_predict() -> None:
    law = as_law()
    n = required_parameters(law, 7.0, 250.0)
    assert predict(law, n, 250.0) == pytest.approx(7.0, rel=1e-12)
    assert required_parameters(as_law(offset=1.0), 0.5, 250.0) == 0.0


def test_in_range_allows_half_as_much_again() -> None:
    law = as_law()
    assert in_range(law, 14_900.0, 67.0)
    assert not in_range(law, 15_100.0, 200.0)
    assert not in_range(law, 5_000.0, 66.0)


NOISE = 0.08  # nats
SPOTS = ((2000.0, 150.0), (8000.0, 300.0), (12_000.0, 500.0))


@pytest.fixture(scope="module")
def noisy_fits() -> list[Fit]:
    """160 fits of the same 18 cells at two sites under Gaussian noise of 0.08 nats."""
    rng, points = np.random.default_rng(2026), design(sites=(0, 1))
    return [fit_law(with_noise(points, rng, NOISE), reference_loss=CEILING * 3) for _ in range(160)]


QUANTILE = float(student.ppf(0.95, 18 - 5))  # two-sided 90 %, five free parameters


def standard_error(law: Law, n: float, tokens: float) -> float:
    """Of one new observation, nats: the covariance by the delta method, plus residual scatter."""
    gradient = predict_gradient(law, n, tokens)
    return math.hypot(math.sqrt(gradient @ np.array(law.covariance) @ gradient), law.residual_stderr)


@pytest.mark.slow
def test_prediction_intervals_cover_at_their_nominal_rate(noisy_fits: list[Fit]) -> None:
    rng = np.random.default_rng(1)
    ratios = [
        (true_reduction(0, n, ell) + rng.normal(0.0, NOISE) - predict(fit.law, n, ell))
        / standard_error(fit.law, n, ell)
        for fit in noisy_fits
        for n, ell in SPOTS
    ]
    assert 0.85 <= np.mean(np.abs(ratios) <= QUANTILE) <= 0.95  # 3.5 standard errors of 480 draws
    assert 0.42 <= np.mean(np.abs(ratios) <= float(student.ppf(0.75, 13))) <= 0.58


def test_exponent_and_efficiency_intervals_cover_at_their_nominal_rate(noisy_fits: list[Fit]) -> None:
    laws = [f.law for f in noisy_fits]
    alpha = [abs(w.parameter_exponent - 0.66) <= QUANTILE * math.sqrt(w.covariance[1][1]) for w in laws]
    efficiency = [abs(f.efficiencies[1][0] - 0.45) <= QUANTILE * f.efficiencies[1][1] for f in noisy_fits]
    assert 0.83 <= np.mean(alpha) <= 0.97
    assert 0.83 <= np.mean(efficiency) <= 0.97


def test_the_covariance_is_that_of_repeated_fits_in_the_stated_order(noisy_fits: list[Fit]) -> None:
    laws = [f.law for f in noisy_fits]
    found = np.array([(w.coefficient, w.parameter_exponent, w.length_exponent, w.offset) for w in laws])
    stated = np.mean([w.covariance for w in laws], axis=0)
    spread = np.sqrt(np.diag(stated))
    assert spread[1:] == pytest.approx(found.std(axis=0)[1:], rel=0.15)
    assert stated / np.outer(spread, spread) == pytest.approx(np.corrcoef(found.T), abs=0.2)


def test_few_points_lean_on_the_priors_and_say_so() -> None:
    points = [
        LawPoint(0, n, ell, true_reduction(0, n, ell)) for n, ell in [(2e3, 96), (4e3, 192), (8e3, 192), (8e3, 384)]
    ]
    few = fit_law(points, reference_loss=40.0).law
    assert 0.4 < few.parameter_exponent < 1.0
    assert predict(few, 4e3, 192) == pytest.approx(true_reduction(0, 4e3, 192), abs=0.4)
    assert few.residual_stderr > 0.05  # agreement of four points proves no small noise
    assert math.sqrt(few.covariance[1][1]) > 0.05


def test_saturated_points_do_not_bend_the_law() -> None:
    points = [*design(), LawPoint(0, 2000.0 * 64, 96, 19.9)]  # the ceiling hides what this one could hold
    fit = fit_law(points, reference_loss=20.0)
    assert fit.law.parameter_exponent == pytest.approx(0.66, rel=1e-6)
    assert fit.residuals[-1] == 0.0


def test_a_saturated_point_still_pulls_up_a_law_that_predicts_less() -> None:
    base = design(sites=(0,))
    plain = fit_law(base, reference_loss=40.0).law
    pulled = fit_law([*base, LawPoint(0, 4000.0, 192, 39.5)], reference_loss=40.0).law
    assert predict(pulled, 4000.0, 192) > predict(plain, 4000.0, 192) + 1.0


@pytest.mark.parametrize(
    ("points", "names"),
    [
        (design(ranks=(2,), lengths=(50, 96, 192, 384), sites=(0,)), {"parameter_exponent"}),
        (design(ranks=(1, 2, 4, 8), lengths=(192,), sites=(0,)), {"length_exponent"}),
        (design(ranks=(2,), lengths=(50, 96, 192, 384)), {"parameter_exponent"}),
        (
            [LawPoint(0, 2e3 * k, 96.0 * k, 3.0 + 0.1 * k) for k in (1, 2, 3, 4, 6, 8, 10, 12)],
            {"parameter_exponent", "length_exponent"},
        ),
        (design(sites=(0,))[:3], {"parameter_exponent", "length_exponent", "offset"}),
        ([*design(sites=(0,)), *design(sites=(2,))], {"efficiency of site 1"}),
        (
            [LawPoint(0, 2e3 * (1 + s), ell, 2.0 + s) for s in (0,) for ell in (96, 192, 384)]
            + [LawPoint(1, 4e3, ell, 3.0) for ell in (96, 192, 384)],
            {"parameter_exponent", "efficiency of site 1"},
        ),
    ],
    ids=[
        "one rank",
        "one length",
        "one rank at three sites",
        "collinear",
        "three points",
        "empty site",
        "rank is site",
    ],
)
def test_degenerate_designs_name_what_they_leave_open(points: list[LawPoint], names: set[str]) -> None:
    with pytest.raises(FitError) as caught:
        fit_law(points, reference_loss=40.0)
    assert set(caught.value.unidentified) == names


def test_three_distinct_cells_do_not_identify_the_offset() -> None:
    cells = [(2e3, 96), (2e3, 192), (4e3, 96)] * 3
    with pytest.raises(FitError) as caught:
        fit_law([LawPoint(0, n, ell, true_reduction(0, n, ell)) for n, ell in cells], reference_loss=40.0)
    assert "offset" in caught.value.unidentified


def test_values_that_are_no_measurement_are_refused() -> None:
    with pytest.raises(FitError, match="not finite"):
        fit_law([*design(), LawPoint(0, 2000.0, 96, math.nan)], reference_loss=40.0)
    with pytest.raises(FitError, match="no tokens"):
        fit_law([*design(), LawPoint(0, 2000.0, 0, 3.0)], reference_loss=40.0)


def test_the_papers_points_fit_as_they_print() -> None:
    points = paper_points()
    law = fit_law(points, reference_loss=14.0).law
    assert law.r_squared >= 0.995
    assert law.parameter_exponent == pytest.approx(0.66, abs=0.03)
    assert law.length_exponent == pytest.approx(0.56, abs=0.03)


def paper_points() -> list[LawPoint]:
    """The paper's own measurements at one site."""
    shared = Path(os.environ.get("LORASIZE_SHARED") or ROOT.parent / "shared")
    path = shared / "data" / "paper_law_points.csv"
    if not path.is_file():
        pytest.skip("the paper's points are not on this machine")
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    return [LawPoint(0, 8192.0 * int(r["rank"]), int(r["n_tokens"]), float(r["loss_reduction_nats"])) for r in rows]


def test_the_soft_ceiling_predicts_long_corpora_no_worse_than_the_papers_form() -> None:
    points = paper_points()
    errors = {}
    for soft in (False, True):
        law = fit_law([p for p in points if p.n_tokens <= 3000], reference_loss=14.0, soft_ceiling=soft).law
        far = [(p, predict(law, p.n_parameters, p.n_tokens)) for p in points if p.n_tokens == 10_000]
        shown = [(p, 14.0 * soft_capped(reached / 14.0) if soft else reached) for p, reached in far]
        errors[soft] = math.sqrt(sum((reached - p.loss_reduction) ** 2 for p, reached in shown) / len(shown))
    assert errors[True] <= errors[False]


def test_a_run_that_ended_because_it_succeeded_is_a_lower_bound() -> None:
    """Early stopping hides what an adapter could hold; as a plain point it would flatten the law."""
    stopped = LawPoint(0, 16_000.0, 96, true_reduction(0, 2000.0, 96), censored=True)
    law = fit_law([*design(), stopped], reference_loss=40.0).law
    assert predict(law, 16_000.0, 96) == pytest.approx(true_reduction(0, 16_000.0, 96), rel=1e-4)
    open_point = dataclasses.replace(stopped, censored=False)
    flattened = fit_law([*design(), open_point], reference_loss=40.0).law
    assert predict(flattened, 16_000.0, 96) < 0.9 * true_reduction(0, 16_000.0, 96)
