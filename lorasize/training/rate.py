"""The learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Both: docs/log/recipe.md#release-point
_CALM = 0.4  # the rate falls with the root of the share of stubborn tokens, once that is below this
SHARE_WHILE_HARMED = 0.1  # of tokens, taken to be stubborn at least while other text suffers, to undo that; not tuned
_SLOWEST = 0.05  # of the rate, at least

Schedule = Callable[[int, float], float]  # steps taken so far, share of stubborn tokens → the rate of the next step


@dataclass(frozen=True)
class Rate:
    """The recipe's schedule: fast while most tokens are stubborn, slower as few are left; no horizon to guess."""

    fastest: float
    calm: float = _CALM
    slowest: float = _SLOWEST

    def __call__(self, step: int, stubborn: float) -> float:
        """The rate of the step after `step` others, where this share of the tokens has not passed yet."""
        return self.fastest * min(1.0, max(self.slowest, math.sqrt(stubborn / self.calm)))
