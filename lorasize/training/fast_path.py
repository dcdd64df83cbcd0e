"""Passages on the model from its first adapted layer on: the frozen layers below are run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.losses.batches import Batch, groups, layout, make_batches
from lorasize.losses.frozen_layers import Suffix, suffix_of
from lorasize.losses.head import AnyHead, OwnLogits, checked_head
from lorasize.losses.shortlist import Shortlists
from lorasize.losses.token_losses import TokenLosses, Weigh, loss_and_gradient
from lorasize.models.adapters import base_of, first_adapted_layer
from lorasize.models.placement import input_device
from lorasize.records import BATCH_TOKENS

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class FastPath:
    """The layers from the first adapted one on, the LM head, and passages in batches, to run through both."""

    suffix: Suffix
    head: AnyHead
    batches: Sequence[Batch]
    shortlists: Shortlists

    @property
    def gated(self) -> bool:
        """Whether the adapter acts on some positions alone."""
        return self.batches[0].active is not None

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states that predict the target tokens, shape (token, width); the suffix must be entered.

        Raises:
            ModelError: the model gives no gradient, as some that read long texts in pieces do not.
        """
        self.suffix.active = batch.active
        hidden = self.suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
        if torch.is_grad_enabled() and not hidden.requires_grad:
            raise ModelError(
                f"{self.suffix.name} gives no gradient for a passage of {batch.ids.shape[1]} positions, so an adapter "
                "cannot be trained on it: split it into shorter ones"
            )
        return hidden

    def loss_and_gradient(
        self, batch: Batch, hidden: Tensor, weigh: Weigh, step: int | None
    ) -> tuple[TokenLosses, Tensor, Tensor]:
        """Losses and weights of the target tokens, and the gradient of Σ weight·loss on `hidden`, (token, width).

        At a `step`, of a large head only the rows that matter are seen; all of them where it is None.
        """
        if step is None or not self.shortlists.able:
            return loss_and_gradient(self.head, hidden, batch.targets, weigh)
        near = self.shortlists.of(batch, hidden, step)
        return loss_and_gradient(near.head, hidden, near.targets, weigh, near.rest(hidden))


def fast_path(adapted: PeftModel, encoded: Sequence[EncodedPassage], batch_tokens: int) -> FastPath:
    """The passages in batches of at most `batch_tokens` positions, or of one passage.

    Raises:
        ModelError: the model's logits are no numbers.
    """
    base, (suffix, head) = base_of(adapted), way_through(adapted, encoded, batch_tokens)
    held = min(batch_tokens, head.chunk) if suffix.logits else batch_tokens
    batches = make_batches(base, encoded, suffix.first, held, input_device(base))
    return FastPath(suffix, head, batches, Shortlists(head))


def way_through(
    adapted: PeftModel, encoded: Sequence[EncodedPassage], batch_tokens: int = BATCH_TOKENS
) -> tuple[Suffix, AnyHead]:
    """The layers and the head that the passages are run through.

    Where entering the model above its frozen layers does not give its own output, all of it is run at every step; where
    our head does not give its own logits, those are taken.

    Raises:
        ModelError: the model's logits are no numbers.
    """
    base = base_of(adapted)
    few = layout(encoded, groups(encoded, batch_tokens)[-1], input_device(base))[0]
    with adapted.disable_adapter():  # a trained one makes more of bfloat16's differences than the check allows
        head = checked_head(base, few)
        return suffix_of(base, first_adapted_layer(adapted), few, logits=isinstance(head, OwnLogits)), head

