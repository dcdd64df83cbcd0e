"""Text that training must not harm: how far its loss has moved, and a pull back towards the base model.

The pull is KL(base ‖ adapted) on that text, so that the adapter is kept from changing what the model says there instead
of learning the text by heart. Its weight follows the drift: none while that is small, more as it nears the bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorasize.adapters import base_of
from lorasize.losses import Head, divergence_and_gradient, token_losses
from lorasize.records import Passage
from lorasize.tokens import EncodedPassage
from lorasize.training.batches import Batch, make_batches
from lorasize.training.prefix import Suffix

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

_EVERY = 5  # steps between two measurements while a bound is to be kept
_NEAR, _FAR = 0.6, 0.3  # of the bound: the pull grows above the one and falls below the other
_FIRST, _MOST = 0.3, 100.0  # weight of the pull when it begins, and at most
_POSITIONS = 256  # of a batch: one batch is pulled on in a step
_TOKENS = 2048  # of the text that are looked at


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
        batches = make_batches(base, encoded, first, _POSITIONS, device)
        with suffix.entered():
            for batch in batches:
                hidden = suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
                total += float(token_losses(head, hidden, batch.targets).loss.sum())
                n += len(batch.targets)
                states.append(hidden if bound is not None else hidden[:0])
    return Retained(suffix, head, bound, batches, states, total / n)


def neutral_text() -> str:
    """The text that comes with the package, to see what memorising does to another."""
    return (files("lorasize") / "neutral.txt").read_text(encoding="utf-8")


def windows(text: str, tokenizer: PreTrainedTokenizerBase, max_positions: int) -> list[EncodedPassage]:
    """The text as passages of a few hundred tokens, each prompted by its first token; of a long text, some of them.

    At most `_TOKENS` tokens are kept, in windows spread evenly over the text.
    """
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    size = min(_POSITIONS, max_positions)
    starts = list(range(0, max(1, len(ids) - 1), size))
    most = max(1, _TOKENS // size)
    if len(starts) > most:
        starts = [starts[round(k * (len(starts) - 1) / (most - 1))] for k in range(most)]
    nothing = Passage(id="retained", file="retained", line=1, prompt="", target="retained")
    parts = [ids[begin : begin + size + 1] for begin in starts]
    return [EncodedPassage(nothing, tuple(part[:1]), tuple(part[1:])) for part in parts if len(part) > 1]
