"""Text that training must not harm: how far its loss has moved, and a pull back towards the base model.

The pull is KL(base ‖ adapted) on that text, so that the adapter is kept from changing what the model says there instead
of learning the text by heart. Its weight follows the drift: none while that is small, more as it nears the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import make_batches
from lorasize.losses.neutral import POSITIONS
from lorasize.losses.token_losses import divergence_and_gradient, token_losses
from lorasize.models.adapters import base_of
from lorasize.training.fast_path import FastPath

if TYPE_CHECKING:
    from peft import PeftModel

# None of these is tuned. With them a bound was kept at no more steps:
# docs/log/robustness.md#drift-with-and-without-a-bound
_EVERY = 5  # steps between two measurements while a bound is to be kept
_NEAR, _FAR = 0.6, 0.3  # of the bound: the pull grows above the one and falls below the other
_FIRST, _MOST = 0.3, 100.0  # weight of the pull when it begins, and at most


@dataclass
class RetainedState:
    """Where the pull stands.

    Attributes:
        drift: Loss added by the adapter when last measured, nats per token.
        weight: Of the pull.
        turn: Batches pulled on so far.
        waited: Steps since the last measurement.
    """

    drift: float = 0.0
    weight: float = 0.0
    turn: int = 0
    waited: int = 0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RetainedState:
        """What `to_json` gave."""
        return cls(**values)


@dataclass
class Retained:
    """The text in batches, and what the base model makes of it.

    Attributes:
        path: The text's batches.
        bound: Nats per token that the loss may grow by; None for measuring alone.
        base_states: The base model's hidden states for each batch, shape (token, width); empty without a bound.
        base_loss: Mean loss under the base model, nats per token.
        state: Where the pull stands.
    """

    path: FastPath
    bound: float | None
    base_states: Sequence[Tensor]
    base_loss: float
    state: RetainedState = field(default_factory=RetainedState)

    @property
    def harmed(self) -> bool:
        """Whether the bound is broken by what was last measured."""
        return self.bound is not None and self.state.drift > self.bound

    @torch.no_grad()
    def measure(self) -> float:
        """Loss on the text now minus that under the base model, nats per token."""
        total, n = 0.0, 0
        with self.path.suffix.entered():
            for batch in self.path.batches:
                total += float(token_losses(self.path.head, self.path.hidden(batch), batch.targets).loss.sum())
                n += len(batch.targets)
        self.state.drift = total / n - self.base_loss
        self.state.waited = 0
        return self.state.drift

    def pull(self) -> None:
        """Add the gradient of weight · KL on one batch to the parameters; the suffix must be entered."""
        if self.bound is None or self.state.weight <= 0:
            return
        turn = self.state.turn % len(self.path.batches)
        batch = self.path.batches[turn]
        hidden = self.path.hidden(batch)
        _, gradient = divergence_and_gradient(self.path.head, hidden.detach(), self.base_states[turn])
        hidden.backward(gradient.mul_(self.state.weight / len(batch.targets)))
        self.state.turn += 1

    def stepped(self) -> None:
        """Measure now and then, and let the weight of the pull follow."""
        state = self.state
        state.waited += 1
        if self.bound is None or state.waited < _EVERY:
            return
        share = self.measure() / self.bound if self.bound > 0 else float("inf")
        if share > _NEAR:
            state.weight = min(_MOST, max(_FIRST, 2.0 * state.weight))
        elif share < _FAR:
            state.weight = state.weight / 1.5 if state.weight > _FIRST / 4 else 0.0


def retain(
    adapted: PeftModel, corpus: FastPath, encoded: Sequence[EncodedPassage], bound: float | None
) -> Retained:
    """The text as batches, with the base model's states on it, which are run once and without the adapter.

    Args:
        adapted: The model with its adapter, which is put aside while this runs.
        corpus: The fast path of the corpus that is trained on; the text runs through the same layers and head.
        encoded: Windows of the text.
        bound: Nats per token that the loss may grow by; None for measuring alone.
    """
    base, states, total, n = base_of(adapted), [], 0.0, 0
    device = corpus.batches[0].ids.device
    with adapted.disable_adapter(), torch.no_grad():
        batches = make_batches(base, encoded, corpus.suffix.first, POSITIONS, device)
        path = FastPath(corpus.suffix, corpus.head, batches, corpus.shortlists)
        with path.suffix.entered():
            for batch in batches:
                hidden = path.hidden(batch)
                total += float(token_losses(path.head, hidden, batch.targets).loss.sum())
                n += len(batch.targets)
                states.append(hidden if bound is not None else hidden[:0])
    return Retained(path, bound, states, total / n)
