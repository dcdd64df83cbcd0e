"""Mastered passages rest: they leave the batch, and are looked at again at growing intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

_RESTING = 0.9  # a passage rests once every token of it is above this: docs/log/recipe.md#resting-sooner-negative
_MAX_INTERVAL = 8  # looks at a resting passage are at most this many epochs apart; not tuned


@dataclass
class Resting:
    """Which passages are looked at in which epoch.

    Attributes:
        due: The epoch in which each passage is looked at again.
        interval: Epochs between the last look at each passage and that one.
        epoch: The epoch now.
    """

    due: list[int]
    interval: list[int]
    epoch: int = 0

    @classmethod
    def none(cls, n_passages: int) -> Resting:
        """No passage rests."""
        return cls([0] * n_passages, [1] * n_passages)

    def is_due(self, passage: int) -> bool:
        """Whether a passage is looked at in this epoch."""
        return self.due[passage] <= self.epoch

    def note(self, passage: int, largest_loss: float) -> None:
        """A passage was looked at now: let it rest, longer than before, if its hardest token is mastered."""
        mastered = largest_loss < -math.log(_RESTING)
        self.interval[passage] = min(_MAX_INTERVAL, 2 * self.interval[passage]) if mastered else 1
        self.due[passage] = self.epoch + self.interval[passage]
