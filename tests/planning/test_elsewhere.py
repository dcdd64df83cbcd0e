"""Seconds scaled to a device that was not calibrated."""

from __future__ import annotations

import pytest
from support.calibration import CALIBRATION, plan_of

from lorasize.planning import scaled_from, scaled_seconds, with_rough_seconds
from lorasize.planning.choice import step_seconds
from lorasize.records import Calibration, DeviceRates, digest

SLOW = DeviceRates(matmul_flops=1e11, copy_bytes_per_second=2e10)
SOURCE = CALIBRATION.model_copy(update={"rates": SLOW, "device": "cpu (A, 2 threads)"})


def scaled(flops: float, copied: float, calibration: Calibration = SOURCE) -> Calibration:
    """The calibration on a device with so many times the rates."""
    rates = DeviceRates(matmul_flops=1e11 * flops, copy_bytes_per_second=2e10 * copied)
    return scaled_seconds(calibration, SOURCE, rates, "cuda (B)")


def test_tokens_scale_by_the_smaller_gain_and_launches_stay() -> None:
    found = scaled(5000.0, 100.0).cost
    assert found.seconds_overhead == CALIBRATION.cost.seconds_overhead
    assert found.seconds_per_layer_token == pytest.approx(1e-6)
    assert found.seconds_per_head_token == pytest.approx(1e-5)
    assert found.seconds_per_forward_token == pytest.approx(1e-5)
    assert found.memory_base_bytes == CALIBRATION.cost.memory_base_bytes
    assert scaled(0.5, 4.0).cost.seconds_per_head_token == pytest.approx(2e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_no_mixture_of_products_and_copies_takes_longer(share: float) -> None:
    """A step of 1 s there, of which a share are products, is never longer than said here."""
    for flops, copied in ((5000.0, 100.0), (0.5, 4.0), (3.0, 3.0)):
        factor = scaled(flops, copied).cost.seconds_per_head_token / CALIBRATION.cost.seconds_per_head_token
        assert share / flops + (1.0 - share) / copied <= factor * (1.0 + 1e-9)


def test_the_interval_is_wide_and_wider_where_the_rates_disagree() -> None:
    assert scaled(2.0, 2.0).cost.relative_spread == 2.0
    assert scaled(40_000.0, 100.0).cost.relative_spread == pytest.approx(19.0)
    assert with_rough_seconds(SOURCE).cost == SOURCE.cost.model_copy(update={"relative_spread": 2.0})


def test_products_of_half_the_bytes_are_as_many() -> None:
    """What was moved over has seconds by bytes, so that products of a narrower dtype are counted twice."""
    narrow = SOURCE.model_copy(update={"dtype": "bfloat16"})
    assert scaled(10.0, 1000.0, narrow).cost.seconds_per_head_token == pytest.approx(2e-4)
    assert scaled(1000.0, 10.0, narrow).cost.seconds_per_head_token == pytest.approx(1e-4)


def test_a_plan_says_that_its_seconds_were_scaled() -> None:
    moved = scaled(2.0, 2.0)
    assert (scaled_from(moved), scaled_from(SOURCE)) == ("cpu (A, 2 threads)", None)
    assert (moved.device, moved.law) == ("cuda (B)", SOURCE.law)
    there, here = plan_of(2000.0, SOURCE), plan_of(2000.0, moved, same_device=False)
    said = [w for w in here.warnings if "scaled from cpu (A, 2 threads) to cuda (B)" in w]
    assert len(said) == 1
    assert "an estimate" in said[0]
    assert not any("scaled" in w for w in there.warnings)
    assert not any("rough" in w and "measured on" in w for w in here.warnings)
    assert there.prediction is not None
    assert here.prediction is not None
    assert here.prediction.seconds.point < there.prediction.seconds.point
    ends = [p.seconds.hi / p.seconds.lo for p in (there.prediction, here.prediction)]
    assert ends[1] > ends[0]


def test_seconds_without_rates_are_not_scaled() -> None:
    with pytest.raises(ValueError, match="its rates were not measured"):
        scaled_seconds(SOURCE, CALIBRATION, SLOW, "cuda (B)")


def test_rates_are_no_part_of_an_older_calibration() -> None:
    assert CALIBRATION.rates is None
    assert digest(CALIBRATION.model_copy(update={"rates": None})) == digest(CALIBRATION) != digest(SOURCE)
    assert step_seconds(SOURCE, (20,), 100.0) == step_seconds(CALIBRATION, (20,), 100.0)
    old = {k: v for k, v in CALIBRATION.model_dump(mode="json", by_alias=True).items() if k != "rates"}
    assert digest(Calibration.model_validate(old)) == digest(CALIBRATION)
