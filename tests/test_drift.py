"""The drift that probes predict."""

from __future__ import annotations

import math

import pytest
from synthetic import observation

from lorasize import records as r
from lorasize.planning import predicted_drift


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
