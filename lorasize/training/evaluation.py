"""What is known of each target token: its loss when last looked at."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """One full look: loss of every target token, passage by passage, shape (token,), nats."""

    losses: Tensor

    @property
    def mean_loss(self) -> float:
        """Nats per target token."""
        return float(self.losses.mean())

    @property
    def min_probability(self) -> float:
        """The smallest p of any target token."""
        return math.exp(-float(self.losses.max()))

    def n_below(self, probability: float) -> int:
        """Target tokens with p at or below `probability`."""
        return int((self.losses >= -math.log(probability)).sum())


class LastLosses:
    """The loss of each target token when last looked at; infinite before the first look.

    Attributes:
        losses: Passage by passage, shape (token,), nats.
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        """Nothing is known yet. `lengths` are the target tokens of each passage."""
        self._offsets = list(accumulate(lengths, initial=0))
        self.losses = torch.full((self._offsets[-1],), math.inf)

    def __len__(self) -> int:
        """Target tokens of all passages."""
        return len(self.losses)

    def of(self, passage: int) -> Tensor:
        """The losses of one passage, shape (token,)."""
        return self.losses[self._offsets[passage] : self._offsets[passage + 1]]

    def note(self, passage: int, losses: Tensor) -> None:
        """Remember what the tokens of a passage cost now."""
        self.of(passage).copy_(losses)

    @property
    def largest(self) -> float:
        """The loss of the token that is furthest from recall, nats."""
        return float(self.losses.max())

    def share_from(self, loss: float) -> float:
        """The share of tokens whose loss is `loss` or more."""
        return float((self.losses >= loss).float().mean())
