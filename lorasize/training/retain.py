"""Text that training must not harm: how far its loss has moved, and a pull back towards the base model.

The pull is KL(base ‖ adapted) on that text, so that the adapter is kept from changing what the model says there instead
of learning the text by heart. Its weight follows the drift: none while that is small, more as it nears the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import Batch, make_batches
from lorasize.losses.frozen_layers import Suffix
from lorasize.losses.head import Head
from lorasize.losses.neutral import POSITIONS
from lorasize.losses.token_losses import divergence_and_gradient, token_losses
from lorasize.models.adapters import base_of

if TYPE_CHECKING:
    from peft import PeftModel

_EVERY = 5  # steps between two measurements while a bound is to be kept
_NEAR, _FAR = 0.6, 0.3  # of the bound: the pull grows above the one and falls below the other
_FIRST, _MOST = 0.3, 100.0  # weight of the pull when it begins, and at most


@dataclass
class Retained:
    """The text in batches, the base model's hidden states on it, and where the pull stands.

    Attributes:
        before: Mean loss under the base model, nats per token.
        drift: Loss added by the adapter when last measured, nats per token.
    """

    suffix: Suffix
    head: Head
    bound: float | None
    batches: list[Batch]
    hidden: list[Tensor]
    before: float
    drift: float = 0.0
    weight: float = 0.0
    turn: int = 0
    waited: int = 0
    plain: tuple[str, ...] = field(default=("drift", "weight", "turn", "waited"), repr=False)

    @property
    def harmed(self) -> bool:
        """Whether the bound is broken by what was last measured."""
        return self.bound is not None and self.drift > self.bound

    @torch.no_grad()
    def measure(self) -> float:
        """Loss on the text now minus that under the base model, nats per token."""
        total, n = 0.0, 0
        with self.suffix.entered():
            for batch in self.batches:
                hidden = self.suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
                total += float(token_losses(self.head, hidden, batch.targets).loss.sum())
                n += len(batch.targets)
        self.drift = total / n - self.before
        self.waited = 0
        return self.drift

    def pull(self) -> None:
        """Add the gradient of weight · KL on one batch to the parameters; the suffix must be entered."""
        if self.bound is None:
            return
        if self.weight > 0:
            batch, base = self.batches[self.turn % len(self.batches)], self.hidden[self.turn % len(self.batches)]
            hidden = self.suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
            _, gradient = divergence_and_gradient(self.head, hidden.detach(), base)
            hidden.backward(gradient.mul_(self.weight / len(batch.targets)))
            self.turn += 1

    def stepped(self) -> None:
        """Measure now and then, and let the weight of the pull follow."""
        self.waited += 1
        if self.bound is None or self.waited < _EVERY:
            return
        share = self.measure() / self.bound if self.bound > 0 else float("inf")
        if share > _NEAR:
            self.weight = min(_MOST, max(_FIRST, 2.0 * self.weight))
        elif share < _FAR:
            self.weight = self.weight / 1.5 if self.weight > _FIRST / 4 else 0.0

    def state(self) -> dict[str, Any]:
        """What the steps to come depend on, as JSON values."""
        return {name: getattr(self, name) for name in self.plain}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        for name in self.plain:
            setattr(self, name, state[name])


def retain(
    adapted: PeftModel, suffix: Suffix, head: Head, encoded: Sequence[EncodedPassage], first: int, bound: float | None
) -> Retained:
    """The text as batches, with the base model's states on it, which are run once and without the adapter.

    Args:
        adapted: The model with its adapter, which is put aside meanwhile.
        suffix: Of the model, from the first adapted layer on.
        head: The LM head.
        encoded: Windows of the text.
        first: The first adapted layer.
        bound: Nats per token that the loss may grow by; None for measuring alone.
    """
    base, states, total, n = base_of(adapted), [], 0.0, 0
    device = next(base.parameters()).device
    with adapted.disable_adapter(), torch.no_grad():
        batches = make_batches(base, encoded, first, POSITIONS, device)
        with suffix.entered():
            for batch in batches:
                hidden = suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
                total += float(token_losses(head, hidden, batch.targets).loss.sum())
                n += len(batch.targets)
                states.append(hidden if bound is not None else hidden[:0])
    return Retained(suffix, head, bound, batches, states, total / n)
