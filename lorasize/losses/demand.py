"""What a corpus asks to be written, in nats, from each token's base loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lorasize.corpus.repetition import repeated
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.records import Demand, PassageDemand
from lorasize.units import bits

_COSTLIEST = 10  # passages named in a plan


def demand(encoded: Sequence[EncodedPassage], losses: Sequence[Tensor]) -> Demand:
    """What these passages ask to be written, given each target token's base loss (nats)."""
    again = repeated(encoded)
    costs = [float(loss[~torch.tensor(old)].sum()) for loss, old in zip(losses, again, strict=True)]
    nats = sum(costs)
    if not math.isfinite(nats):
        raise ModelError("the model's loss on this corpus is not a number: its weights or its config are damaged")
    order = sorted(range(len(costs)), key=lambda k: -costs[k])
    return Demand(
        base_loss=sum(float(loss.sum()) for loss in losses) / sum(len(loss) for loss in losses),
        nats=nats,
        bits=bits(nats),
        n_repeated=sum(sum(old) for old in again),
        costliest=tuple(_passage_demand(encoded[k], costs[k]) for k in order[:_COSTLIEST]),
    )


def _passage_demand(encoded: EncodedPassage, nats: float) -> PassageDemand:
    p = encoded.passage
    return PassageDemand(id=p.id, file=p.file, line=p.line, n_tokens=encoded.n_tokens, nats=nats)
