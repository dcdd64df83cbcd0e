"""Losses of the base model alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import active, begins_late, groups, layout
from lorasize.losses.frozen_layers import Suffix, notes_on, suffix_of
from lorasize.losses.head import LOOK, OwnLogits, checked_head
from lorasize.losses.token_losses import token_losses
from lorasize.models import BaseModel


@torch.no_grad()
def base_losses(base: BaseModel, encoded: Sequence[EncodedPassage], batch_tokens: int = 4096) -> list[Tensor]:
    """Token losses of each passage under the base model alone, in corpus order: one forward pass, nats.

    An adapter that the model has acts from where the passages say.

    Raises:
        ModelError: its logits are no numbers.
    """
    head = checked_head(base.model, torch.tensor([encoded[0].prompt_ids[:16]], device=base.device))
    own = isinstance(head, OwnLogits)
    whole, batch_tokens = Suffix(base.model, None, logits=own), min(batch_tokens, head.chunk) if own else batch_tokens
    found: dict[int, Tensor] = {}
    gated = begins_late(encoded)
    for group in groups(encoded, batch_tokens):
        ids, rows, columns, targets = layout(encoded, group, base.device)
        whole.active = active(encoded, group, ids) if gated else None
        with whole.entered():
            hidden = whole.run(ids, None)[rows, columns]
        losses = token_losses(head, hidden, targets).loss.cpu()
        found.update(zip(group, losses.split([encoded[i].n_tokens for i in group]), strict=True))
    return [found[i] for i in range(len(encoded))]


def slower(base: BaseModel, first: int, ids: Sequence[int]) -> tuple[str, ...]:
    """What takes longer in training an adapter from layer `first` on than with other models, tried on these token ids.

    Raises:
        ModelError: its logits are no numbers.
    """
    n_ids = base.n_ids
    known = [i for i in ids if i < n_ids]  # a tokenizer may have more than the model
    few = torch.tensor([known[:LOOK]], device=base.device)
    own = isinstance(checked_head(base.model, few), OwnLogits)
    return notes_on(suffix_of(base.model, first, few, logits=own))
