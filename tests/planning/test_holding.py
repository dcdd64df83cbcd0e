"""The law read the other way round, and sites put together of modules that were probed one by one."""

from __future__ import annotations

from typing import Any

import pytest
from support.calibration import CALIBRATION, ONE, SIX, plan_of, with_bound

from lorasize.errors import CalibrationError
from lorasize.planning.composed import with_site
from lorasize.planning.holding import holdings, largest_nats
from lorasize.records import Calibration, SiteEfficiency

PARAMETERS = {name: dict.fromkeys(range(30), n) for name, n in (("up_proj", 2112), ("q_proj", 1152), ("v_proj", 768))}


def probed(*more: tuple[str, float]) -> Calibration:
    """The synthetic calibration, with these modules in layer 20 besides."""
    sites = [
        SiteEfficiency(
            target_modules=(name,), layers_to_transform=(20,), efficiency=worth, stderr=0.01,
            parameters_per_rank=PARAMETERS[name][20],
        )
        for name, worth in more
    ]  # fmt: skip
    return CALIBRATION.model_copy(update={"sites": (*CALIBRATION.sites, *sites)})


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_what_is_held_is_just_what_plan_says_is_held(confidence: float) -> None:
    for one in holdings(CALIBRATION, 4, confidence, None, 3.0):
        at: dict[str, Any] = {"rank": 4, "target_modules": one.target_modules}
        alone = CALIBRATION.model_copy(
            update={"sites": tuple(s for s in CALIBRATION.sites if s.layers_to_transform == one.layers_to_transform)}
        )
        chances = [plan_of(times * one.nats, alone, **at).prediction for times in (0.99, 1.01)]
        within, beyond = (seen.success_probability for seen in chances if seen is not None)
        assert beyond < confidence < within


def test_under_a_bound_it_is_the_site_of_that_law() -> None:
    known = with_bound()
    (one,) = holdings(known, 16, 0.9, 0.02, 3.0)
    assert (one.target_modules, one.layers_to_transform, one.max_drift) == (*SIX, 0.02)
    chances = [plan_of(n * one.nats, known, bound=0.02, rank=16).prediction for n in (0.99, 1.01)]
    assert [seen is not None and seen.success_probability >= 0.9 for seen in chances] == [True, False]
    assert one.sample_tokens == int(one.nats / 3.0)
    (tight,) = holdings(known, 16, 0.4, 0.005, 3.0)
    (loose,) = holdings(known, 16, 0.4, 0.02, 3.0)
    assert tight.nats < loose.nats
    with pytest.raises(CalibrationError, match="knows nothing of adapters under a bound"):
        list(holdings(CALIBRATION, 16, 0.9, 0.02, 3.0))


def test_more_rank_holds_more_and_what_is_not_held_is_nothing() -> None:
    held = [next(iter(holdings(CALIBRATION, rank, 0.9, None, 3.0))).nats for rank in (1, 2, 8, 64)]
    assert held == sorted(held)
    assert largest_nats(lambda demand: 0.1, 0.9) == 0.0
    assert largest_nats(lambda demand: float(demand.nats <= 1234.5), 0.9) == pytest.approx(1234.5, rel=1e-3)


def test_a_probed_site_is_taken_as_it_was_probed() -> None:
    alone, notes = with_site(CALIBRATION, ONE[0], ONE[1], PARAMETERS)
    assert [(s.target_modules, s.layers_to_transform) for s in alone.sites] == [ONE]
    assert notes == []
    every, notes = with_site(CALIBRATION, ONE[0], None, PARAMETERS)
    assert {s.layers_to_transform for s in every.sites} == {ONE[1], SIX[1]}
    assert notes == []


def test_modules_are_put_together_by_what_each_is_worth() -> None:
    known = probed(("q_proj", 0.1), ("v_proj", 0.4))
    made, (note,) = with_site(known, ["v_proj", "q_proj"], (20,), PARAMETERS)
    (one,) = made.sites
    assert one.target_modules == ("q_proj", "v_proj")
    assert one.parameters_per_rank == 1152 + 768
    assert one.efficiency == pytest.approx((1152 * 0.1 + 768 * 0.4) / 1920)
    assert "q_proj+v_proj in 1 layer holds" in note
    more, _ = with_site(known, ["v_proj", "q_proj"], (), PARAMETERS)
    assert more.sites[0].layers_to_transform == tuple(range(30))
    assert more.sites[0].parameters_per_rank == 30 * 1920
    assert more.sites[0].efficiency == pytest.approx(1.3 * one.efficiency)  # as of up_proj in six layers
    assert more.sites[0].stderr > one.stderr


def test_what_was_never_probed_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no site with modules k_proj"):
        with_site(probed(("q_proj", 0.1)), ["q_proj", "k_proj"], None, PARAMETERS)
    with pytest.raises(CalibrationError, match="up_proj is in none of the layers asked for"):
        with_site(CALIBRATION, ["up_proj"], (31,), PARAMETERS)
