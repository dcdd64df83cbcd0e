"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

_BETAS = (0.9, 0.95)  # of Adam: docs/log/recipe.md#other-optimisers-and-objectives-negative
RATE = 0.06  # of Adam: docs/log/recipe.md#other-optimisers-and-objectives-negative
BOUNDED_RATE = 0.02  # the same under a bound on drift: docs/log/harm.md#a-bound-on-drift

# Both: docs/log/recipe.md#release-point
_CALM = 0.4  # the rate falls with the root of the share of stubborn tokens, once that is below this
_SLOWEST = 0.05  # of the rate, at least
# Batches up to which the rate is the fastest, and how it falls with more: docs/log/recipe.md#many-batches
_FEW = 4
_FALLS = 0.75
# Under a bound, both: docs/log/harm.md#all-batches-in-one-step-under-the-bound
SLOWEST_BOUNDED = 0.2  # of the rate, at least: what is over the bound is undone at that rate
_RELAPSE = 2.0  # times the smallest share of stubborn tokens so far, that the rate rises to again at most

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


def rate_of(fastest: float | None, *, allowed: float | None, n_batches: int = 1) -> Rate:
    """The recipe's schedule, with or without a bound on drift; its own fastest rate when None.

    A step on one of many batches has a noisy gradient, which Adam takes for as large as any: so the rate falls with
    their number. Under a bound a step takes some eight together, and only the slowest rate falls.

    Args:
        fastest: The rate while many tokens are stubborn.
        allowed: The fastest that a bound on drift allows; None without one.
        n_batches: Steps that one look at the whole corpus takes.
    """
    if allowed is not None:
        return Rate(fastest or allowed, slowest=SLOWEST_BOUNDED / max(1, n_batches))
    return Rate(fastest or RATE * min(1.0, _FEW / max(1, n_batches)) ** _FALLS)


def calmed(stubborn: float, fewest: float) -> float:
    """The share of stubborn tokens that the rate goes by under a bound, where it was so small before.

    A pull that is too hard has some tokens lost again; at a rate that rises with them it would lose the others.
    """
    return min(stubborn, _RELAPSE * fewest)


def adam(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser; each step sets its rate."""
    fused = trained[0].device.type == "cuda"  # one launch instead of one for each part of each parameter
    return torch.optim.Adam(trained, betas=_BETAS, fused=fused)
