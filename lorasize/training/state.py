"""The part of a trainer's checkpoint that is no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorasize.training.resting import Resting


@dataclass
class TrainerState:
    """Where a trainer stands.

    Attributes:
        order: Place of each passage in the curriculum of memft-sw.
        resting: Which passages are looked at in which epoch.
        coarse: Whether steps may multiply in bfloat16 and see a part of a large head: until a full look contradicts
            what they see.
        step: Optimiser steps taken.
        idle: Epochs without a step, all that the curriculum lets in being mastered.
        n_read: Target tokens that steps have read, each as often as it was read.
        slowed: Factor on the learning rate, after losses that were not a number.
        fewest: The smallest share of stubborn tokens so far.
    """

    order: list[int]
    resting: Resting
    coarse: bool
    step: int = 0
    idle: int = 0
    n_read: int = 0
    slowed: float = 1.0
    fewest: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values, on one level."""
        values = asdict(self)
        resting: dict[str, Any] = values.pop("resting")
        return values | resting

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TrainerState:
        """What `to_json` gave; other values are passed over."""
        return cls(
            order=values["order"],
            resting=Resting(due=values["due"], interval=values["interval"], epoch=values["epoch"]),
            coarse=values["coarse"],
            step=values["step"],
            idle=values["idle"],
            n_read=values["n_read"],
            slowed=values["slowed"],
            fewest=values["fewest"],
        )
