"""The drift that probes predict, and how it is said."""

from __future__ import annotations

import math

import pytest
from support import records as made
from support.calibration import observation

from lorasize import records as r
from lorasize.law.drift import predicted_drift
from lorasize.report.facts.plan import plan_facts
from lorasize.report.facts.recall import memorization_facts


def drifted(*drifts: float | None, final: float = 0.2) -> list[r.Observation]:
    """Probes with these drifts."""
    left = {"final_loss": final, "loss_reduction": 14.0 - final}
    return [observation(1, 60 + k).model_copy(update={"drift": d, **left}) for k, d in enumerate(drifts)]


def test_drift_is_the_geometric_mean_of_the_probes() -> None:
    found = predicted_drift(drifted(1.0, 4.0))
    assert found is not None
    assert found.point == pytest.approx(2.0)
    assert found.lo * found.hi == pytest.approx(4.0)
    spread = math.hypot(0.5, math.log(4) / math.sqrt(2) * math.sqrt(1.5))
    assert math.log(found.hi / found.point) == pytest.approx(1.645 * spread)


def test_probes_that_agree_leave_the_spread_between_kinds_of_text() -> None:
    found = predicted_drift(drifted(3.0, 3.0, 3.0, -0.2)[:3])
    assert found is not None
    assert (found.point, found.hi) == (pytest.approx(3.0), pytest.approx(3.0 * math.exp(1.645 * 0.5)))


@pytest.mark.parametrize("probes", [[], drifted(2.0), drifted(2.0, None), drifted(2.0, 3.0, final=9.0)])
def test_no_drift_is_predicted_from_too_few_or_from_failures(probes: list[r.Observation]) -> None:
    assert predicted_drift(probes) is None


def test_a_drift_for_the_better_is_as_good_as_none() -> None:
    found = predicted_drift(drifted(-0.3, 0.0))
    assert found is not None
    assert found.point == pytest.approx(1e-3)


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    told = r.Estimate(point=2.8, lo=1.0, hi=7.9)
    plan = made.plan(prediction=made.prediction(drift=told))
    assert dict(plan_facts(plan))["drift"] == "+2.8 nats per token on other text (1.0 to 7.9) unless bounded"
    free, bounded = (r.Drift(before=3.6, after=6.0, nats=2.4, bound=bound) for bound in (None, 2.5))
    for drift, said in ((free, ", predicted +2.8, 1.0 to 7.9)"), (bounded, ", at most +2.500 asked)")):
        assert dict(memorization_facts(made.memorization(drift=drift, plan=plan)))["drift"].endswith(said)
    unknown = made.memorization(drift=free, plan=made.plan())
    assert dict(memorization_facts(unknown))["drift"].endswith("(3.600 → 6.000)")
