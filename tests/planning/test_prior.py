"""Plans before a model is calibrated: another model's calibration, moved over."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.calibration import CALIBRATION, ONE, SIX, parts, plan_of

from lorasize.planning import prior_calibration, source_of
from lorasize.records import Calibration

SHAPES = {"q_proj": 1152, "up_proj": 2112}


def moved(n_layers: int = 30, shapes: dict[str, int] | None = None, reference: str = "up_proj") -> Calibration:
    """The synthetic calibration moved over to a model of so many layers."""
    model = CALIBRATION.model.model_copy(update={"ref": "other", "n_layers": n_layers})
    where: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "weight_bytes": 1_200_000_000}
    everywhere = {name: dict.fromkeys(range(n_layers), each) for name, each in (shapes or SHAPES).items()}
    return prior_calibration(CALIBRATION, model, everywhere, reference, **where)


def test_a_prior_keeps_bits_per_parameter_and_says_less() -> None:
    prior = moved()
    assert prior.law == CALIBRATION.law
    assert prior.transition.location_stderr == pytest.approx(math.hypot(0.05, 0.8))
    assert [(s.target_modules, s.parameters_per_rank) for s in prior.sites] == [(ONE[0], 2112), (SIX[0], 12_672)]
    assert prior.sites[0].stderr == pytest.approx(math.hypot(0.05, 0.3))
    assert source_of(prior) == "tiny on cpu in float32"
    assert source_of(CALIBRATION) is None


def test_a_prior_scales_depth_and_cost() -> None:
    prior = moved(60, {"mlp.c_fc": 1000}, "mlp.c_fc")
    assert [s.layers_to_transform for s in prior.sites] == [(40,), (28, 32, 36, 40, 44, 48)]
    assert {s.target_modules for s in prior.sites} == {("mlp.c_fc",)}
    assert prior.cost.seconds_per_layer_token == pytest.approx(1e-4)  # twice the weights in twice the layers
    assert prior.cost.seconds_per_head_token == pytest.approx(2e-3)
    assert prior.cost.memory_base_bytes == 1_200_000_000


def test_a_plan_from_a_prior_is_extrapolated_and_asks_for_more() -> None:
    own, prior = plan_of(1500.0), plan_of(1500.0, moved())
    assert own.prediction is not None
    assert prior.prediction is not None
    assert not own.prediction.extrapolated
    assert prior.prediction.extrapolated
    assert "lorasize calibrate" in prior.warnings[0]
    assert parts(prior)[0].n_parameters > parts(own)[0].n_parameters
    assert prior.prediction.rank_interval[1] > own.prediction.rank_interval[1]


def test_a_prior_sits_in_the_nearest_layers_that_have_the_module() -> None:
    """The widths of these layers count, and a site that falls in no layer of its own is left out."""
    model = CALIBRATION.model.model_copy(update={"ref": "hybrid"})
    where: dict[str, Any] = {"device": "cpu", "dtype": "float32", "weight_bytes": 10**9}
    prior = prior_calibration(CALIBRATION, model, {"up_proj": {3: 100, 15: 120, 21: 140}}, "up_proj", **where)
    found = [(s.layers_to_transform, s.parameters_per_rank) for s in prior.sites]
    assert found == [((21,), 140), ((3, 15, 21), 360)]


def test_another_kind_of_reference_is_worth_what_it_was_worth_there() -> None:
    """A mixture of experts may have no MLP to adapt: attention's output holds less for a parameter."""
    worse = CALIBRATION.sites[2].model_copy(update={"target_modules": ("o_proj",), "efficiency": 0.5})
    source = CALIBRATION.model_copy(update={"sites": (*CALIBRATION.sites[:2], worse)})
    model = CALIBRATION.model.model_copy(update={"ref": "experts"})
    where: dict[str, Any] = {"device": "cpu", "dtype": "float32", "weight_bytes": 10**9}
    prior = prior_calibration(source, model, {"o_proj": dict.fromkeys(range(30), 64)}, "o_proj", **where)
    assert [s.efficiency for s in prior.sites] == pytest.approx([0.5 * s.efficiency for s in CALIBRATION.sites[:2]])
