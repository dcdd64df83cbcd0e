"""Each shipped calibration reads back, and refitting its own observations gives the law it states."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import ROOT

from lorasize.artifacts.calibrations import read_calibration
from lorasize.law.bounded import fit_bounded
from lorasize.law.fit import fit_law
from lorasize.law.observations import law_points, transition_points
from lorasize.law.transition import fit_transition
from lorasize.records import RECIPE

SHIPPED = sorted((ROOT / "calibrations").glob("*.json"))


def test_the_builtin_model_on_a_cpu_is_shipped() -> None:
    assert "builtin-smollm2-135m-instruct.cpu.float32.json" in [path.name for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_refitting_the_observations_gives_the_stated_law(path: Path) -> None:
    stated = read_calibration(path)
    assert stated.recipe == RECIPE
    points = law_points(stated.observations, stated.law.reference_loss)
    fit = fit_law(points, reference_loss=stated.law.reference_loss, soft_ceiling=True)
    for name in ("coefficient", "parameter_exponent", "length_exponent", "offset"):
        assert getattr(fit.law, name) == pytest.approx(getattr(stated.law, name), rel=1e-4, abs=1e-4), name
    assert [e for e, _ in fit.efficiencies] == pytest.approx([s.efficiency for s in stated.sites], rel=1e-4)
    again = fit_transition(transition_points(stated.observations, fit.law, stated.sites))
    assert again.location == pytest.approx(stated.transition.location, abs=1e-4)
    assert again.scale == pytest.approx(stated.transition.scale, rel=1e-3)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_refitting_the_probes_under_a_bound_gives_the_stated_law(path: Path) -> None:
    stated = read_calibration(path).bounded
    assert stated is not None
    again = fit_bounded(stated.observations, stated.slowdown)
    assert again.transition.location == pytest.approx(stated.transition.location, abs=1e-4)
    for name in ("steps_coefficient", "steps_exponent", "steps_spread"):
        assert getattr(again.transition, name) == pytest.approx(getattr(stated.transition, name), rel=1e-4), name
    assert (again.drift, again.nats_range) == (pytest.approx(stated.drift), stated.nats_range)
