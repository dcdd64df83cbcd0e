"""Seconds on a device that was not calibrated: those of another, scaled by what both were measured to do in a second.

A step is products, moves of memory, and what does not depend on its tokens: launches and Python. In which mixture is
not known. On the other device its products take as many times as long as the two rates of products say, and its moves
as the two rates of copies say. Whatever the mixture, both together take no longer than by the larger factor: that one
is taken for every token, so that seconds err to the long side. What does not depend on tokens stays as it was, since
neither rate tells of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lorasize.planning.prior import TIME_SPREAD
from lorasize.records import Calibration, DeviceRates

SCALED_FROM = "seconds_from"  # provenance: the device whose seconds were scaled
_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number


def scaled_seconds(calibration: Calibration, source: Calibration, here: DeviceRates, device: str) -> Calibration:
    """The calibration with the seconds that it should have on this device.

    Args:
        calibration: What to plan with: `source`, or what was moved over from it, whose seconds are in proportion to the
            bytes of the weights. Products are in proportion to how many numbers these are.
        source: The calibration whose seconds were measured, with the rates of its device.
        here: The rates of this device, in the dtype to plan in.
        device: Its name.

    Raises:
        ValueError: the source knows no rates.
    """
    if source.rates is None:
        raise ValueError(f"{source.device}: its rates were not measured")
    numbers = _BYTES.get(source.dtype, 4) / _BYTES.get(calibration.dtype, 4)
    products = numbers * source.rates.matmul_flops / here.matmul_flops
    copies = source.rates.copy_bytes_per_second / here.copy_bytes_per_second
    cost, factor = calibration.cost, max(products, copies)
    forward = cost.seconds_per_forward_token
    scaled = cost.model_copy(
        update={
            "seconds_per_layer_token": cost.seconds_per_layer_token * factor,
            "seconds_per_head_token": cost.seconds_per_head_token * factor,
            "seconds_per_forward_token": None if forward is None else forward * factor,
            "relative_spread": max(cost.relative_spread, TIME_SPREAD, _apart(products, copies)),
        }
    )
    known = {**calibration.provenance, SCALED_FROM: source.device}
    return calibration.model_copy(update={"cost": scaled, "device": device, "provenance": known})


def _apart(one: float, other: float) -> float:
    """A spread as wide as half of what lies between two factors, in logarithms."""
    return math.sqrt(max(one, other) / min(one, other)) - 1.0


def with_rough_seconds(calibration: Calibration) -> Calibration:
    """The calibration where a device of another kind lends it its seconds unscaled: as uncertain as another model's."""
    spread = max(calibration.cost.relative_spread, TIME_SPREAD)
    return calibration.model_copy(update={"cost": calibration.cost.model_copy(update={"relative_spread": spread})})


def scaled_from(calibration: Calibration) -> str | None:
    """The device whose seconds were scaled; None where they are as measured."""
    return calibration.provenance.get(SCALED_FROM)
