"""Plans on a device that was not calibrated: seconds of another, scaled where both know their rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorasize.artifacts.calibrations import write_calibration
from lorasize.records import Calibration, DeviceRates, Plan, digest
from lorasize.verbs import plan_basis
from lorasize.verbs.plan import plan

THERE = DeviceRates(matmul_flops=1e11, copy_bytes_per_second=1e10)
FASTER = DeviceRates(matmul_flops=8e11, copy_bytes_per_second=4e10)

Planned = tuple[Plan, Calibration]


@pytest.fixture
def planned(
    torch: Any,
    able_llama: Path,
    calibrated_llama: tuple[Calibration, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Plans with the only calibration that is there, changed; on a device of these rates."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    Path("page.txt").write_text("The harbour office moved 417 copper valves near Pier 9.", "utf-8")

    def with_calibration(here: DeviceRates | None = FASTER, **changes: Any) -> Planned:
        monkeypatch.setattr(plan_basis, "device_rates", lambda device, dtype: here)
        calibration = calibrated_llama[0].model_copy(update=changes)
        write_calibration(calibration, Path("calibrations", "one.json"))
        return plan([Path("page.txt")], ref=str(able_llama), device="cpu").plan, calibration

    return with_calibration


def seconds(made: Plan) -> float:
    """Predicted, of a step."""
    assert made.prediction is not None
    return made.prediction.seconds.point / made.prediction.steps.point


def said(made: Plan, words: str) -> bool:
    """Whether a warning has these words."""
    return any(words in warning for warning in made.warnings)


def test_a_calibration_knows_the_rates_of_its_device(calibrated_llama: tuple[Calibration, Path]) -> None:
    assert calibrated_llama[0].rates is not None


@pytest.mark.parametrize("device", ["cpu (Another, 64 threads)", "cuda (NVIDIA Card)"])
def test_seconds_of_another_device_are_scaled_and_marked(planned: Any, device: str) -> None:
    own, _ = planned(rates=THERE)
    made, calibration = planned(rates=THERE, device=device)
    assert said(made, f"scaled from {device} to cpu (")
    assert not said(made, "not on the plan's device")
    assert not said(made, "Not calibrated")
    assert seconds(own) / 4.0 <= seconds(made) < seconds(own)
    assert made.adapter == own.adapter
    assert (made.inputs.same_device, made.inputs.prior) == (False, False)
    assert made.inputs.calibration_sha256 == digest(calibration)
    assert (own.inputs.same_device, said(own, "scaled")) == (True, False)


def test_the_calibrated_device_is_not_measured_again(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, calibration = planned(rates=THERE, here=None)
    assert own.inputs.same_device
    assert not said(own, "measured on")
    assert calibration.rates == THERE


@pytest.mark.parametrize(("rates", "here"), [(None, FASTER), (THERE, None)], ids=["unknown there", "unknown here"])
def test_without_both_rates_times_are_rough_as_before(planned: Any, rates: Any, here: Any) -> None:
    own, _ = planned(rates=THERE)
    made, _ = planned(rates=rates, here=here, device="cpu (Another, 64 threads)")
    assert said(made, "Times were measured on cpu (Another, 64 threads), not on the plan's device")
    assert made.prediction == own.prediction
    made, _ = planned(rates=rates, here=here, device="cuda (NVIDIA Card)")
    assert said(made, "Times were measured on cuda (NVIDIA Card), not on the plan's device")
    assert seconds(made) == pytest.approx(seconds(own))
    assert made.prediction.seconds.hi > own.prediction.seconds.hi  # of another kind of device


def test_a_calibration_in_another_dtype_is_moved_over_and_scaled(planned: Any) -> None:
    unscaled, _ = planned(rates=None, device="cuda (NVIDIA Card)", dtype="bfloat16")
    made, _ = planned(rates=THERE, device="cuda (NVIDIA Card)", dtype="bfloat16")
    for one in (made, unscaled):
        assert one.inputs.prior
        assert said(one, "on cuda (NVIDIA Card) in bfloat16, moved over to this model")
    assert said(made, "scaled from cuda (NVIDIA Card) to cpu (")
    assert not said(unscaled, "scaled from")
    assert (made.inputs.same_device, unscaled.inputs.same_device) == (False, True)
    assert seconds(made) < seconds(unscaled)
    again, _ = planned(rates=THERE, here=THERE, device="cuda (NVIDIA Card)", dtype="bfloat16")
    assert again.inputs == made.inputs  # whatever the device measured this time
