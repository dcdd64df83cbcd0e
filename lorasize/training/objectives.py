"""The objectives: how MemFT and its peers weigh target tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorasize.losses.token_losses import TokenLosses
from lorasize.records import Method
from lorasize.units import LN2

# MemFT: a token leaves the loss only once p exceeds this; released at ½ it drifts back
# (docs/log/recipe.md#release-point).
RELEASE = 0.82


@dataclass
class Objective:
    """Weights of target tokens under one method; holds what the method remembers between steps.

    `memft` is ours: MemFT-OT with a release point above the threshold and the root of the loss as weight, so that the
    token furthest from recall counts most (docs/log/recipe.md#release-point). `memft-ot` and `memft-sw` are the
    paper's; the latter slides a window over a long passage and, on `many` records, is OT under a curriculum without a
    fall-back.

    Source: arXiv 2605.30260 and its published trainer.
    """

    method: Method
    threshold: float = 0.5
    release: float = RELEASE
    many: bool = False
    windows: dict[int, _Window] = field(default_factory=dict)

    def weights(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Weights before normalisation, shape (token,).

        Args:
            losses: Of the tokens of the passages, concatenated.
            passages: Index of each passage, to keep its window apart.
            lengths: Target tokens of each passage.
        """
        if self.method == "sft":
            return torch.ones_like(losses.loss)
        if self.method == "memft":
            return (losses.loss >= -math.log(max(self.release, self.threshold))) * losses.loss.sqrt()
        if self.method == "memft-ot" or self.many:
            return (losses.loss >= -math.log(self.threshold)).float()
        return self._sliding_window(losses, passages, lengths)

    @property
    def per_token(self) -> bool:
        """Whether the weight of a token follows from its own loss, whatever its passage and whatever came before."""
        return self.method != "memft-sw"

    def remembered(self) -> dict[str, dict[str, float]]:
        """What the method remembers between steps, as JSON values."""
        return {str(passage): asdict(window) for passage, window in self.windows.items()}

    def remember(self, windows: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what `remembered` gave."""
        self.windows = {int(passage): _Window(**window) for passage, window in windows.items()}

    def _sliding_window(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Tensor:
        pieces = zip(losses.loss.split(list(lengths)), losses.correct.split(list(lengths)), strict=True)
        return torch.cat(
            [self.windows.setdefault(p, _Window()).weights(*piece) for p, piece in zip(passages, pieces, strict=True)]
        )


def curriculum_share(progress: float) -> float:
    """Share of passages that `memft-sw` trains on when there are many: 20, 40, 60, 80, then 100 %.

    The paper sets its epoch boundaries by hand for each corpus size; here they are tenths of the step budget.

    Args:
        progress: Steps done ÷ step budget.
    """
    return min(1.0, (1 + int(progress * 10)) / 5)


@dataclass
class _Window:
    """MemFT-SW on one long passage: an anchor at the first wrong argmax, and a window that grows while it is stuck."""

    anchor: int = -1
    stuck: int = 0
    size: float = 50.0

    def weights(self, loss: Tensor, correct: Tensor) -> Tensor:
        soft = torch.sigmoid(10.0 * (loss - LN2))
        wrong = (~correct).nonzero()
        if not len(wrong):
            return soft
        self._move(int(wrong[0]))
        ahead = torch.arange(len(loss), device=loss.device) - self.anchor
        decay = torch.where(ahead >= 0, torch.exp(-ahead.clamp(min=0) / 20.0), torch.ones_like(loss))
        return soft * torch.where(ahead > self.size, torch.full_like(loss, 0.01), decay)

    def _move(self, anchor: int) -> None:
        self.stuck = self.stuck + 1 if anchor == self.anchor else 0
        self.anchor = anchor
        self.size = min(200.0, self.size + 25.0) if self.stuck >= 3 else 50.0
