"""Passages on the model from its first adapted layer on: the frozen layers below are run once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import Batch, check_entry, make_batches
from lorasize.losses.frozen_layers import Suffix
from lorasize.losses.head import Head, checked_head
from lorasize.models.adapters import base_of, first_adapted_layer
from lorasize.models.placement import input_device

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class FastPath:
    """The layers from the first adapted one on, the LM head, and passages in batches, to run through both."""

    suffix: Suffix
    head: Head
    batches: Sequence[Batch]

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states that predict the target tokens, shape (token, width); the suffix must be entered."""
        return self.suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]


def fast_path(adapted: PeftModel, encoded: Sequence[EncodedPassage], batch_tokens: int) -> FastPath:
    """The passages in batches of at most `batch_tokens` positions, or of one passage.

    Raises:
        ModelError: entering the model above its frozen layers, or its LM head, does not give its own output.
    """
    base, first = base_of(adapted), first_adapted_layer(adapted)
    device = input_device(base)
    suffix = Suffix(base, first)
    batches = make_batches(base, encoded, first, batch_tokens, device)
    with adapted.disable_adapter():  # a trained one makes more of bfloat16's differences than the check allows
        head = checked_head(base, batches[-1].ids)
        check_entry(base, suffix, batches[-1])
    return FastPath(suffix, head, batches)
