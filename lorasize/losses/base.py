"""Losses of the base model alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import groups, layout
from lorasize.losses.head import checked_head, decoder
from lorasize.losses.token_losses import token_losses
from lorasize.models import BaseModel


@torch.no_grad()
def base_losses(base: BaseModel, encoded: Sequence[EncodedPassage], batch_tokens: int = 4096) -> list[Tensor]:
    """Token losses of each passage under the base model alone, in corpus order: one forward pass, nats.

    Raises:
        ModelError: the LM head does more to the logits than is known here.
    """
    head = checked_head(base.model, torch.tensor([encoded[0].prompt_ids[:16]], device=base.device))
    found: dict[int, Tensor] = {}
    for group in groups(encoded, batch_tokens):
        ids, rows, columns, targets = layout(encoded, group, base.device)
        hidden = decoder(base.model)(input_ids=ids, use_cache=False).last_hidden_state[rows, columns]
        losses = token_losses(head, hidden, targets).loss.cpu()
        found.update(zip(group, losses.split([encoded[i].n_tokens for i in group]), strict=True))
    return [found[i] for i in range(len(encoded))]
