"""The rows of a large head that matter to a few tokens, all others summed.

With 150,000 rows and more the head is the greater part of a training step, though almost all of the probability is
that of a few thousand rows. Between two looks at the whole head, steps see the rows that were likeliest then; what the
others sum to is followed to first order. Full looks, which decide, see every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lorasize.losses.batches import Batch
from lorasize.losses.head import AnyHead, Head
from lorasize.losses.token_losses import Rest

LARGE = 100_000  # rows from which on a shortlist is worth it: docs/log/speed.md#a-shortlist-of-the-head
_SHARE = 1 / 8  # of the rows: docs/log/speed.md#a-shortlist-that-is-wrong
_TENSORS = ("rows", "targets", "offset", "slope")
_STEPS = 8  # after which the whole head is seen again at the latest: docs/log/speed.md#a-shortlist-of-the-head
_TOLERANCE = 0.3  # nats by which one may be wrong when it is made again: docs/log/speed.md#a-shortlist-that-is-wrong


@dataclass(frozen=True)
class Shortlist:
    """Some rows of a head, and for each target token what the others sum to.

    Attributes:
        rows: Their numbers in the whole head, rising.
        head: Of these rows alone.
        targets: The target tokens as rows of this head, shape (token,).
        offset: With `slope`, ln Σ exp of the other rows' logits to first order around the states seen, shape (token,).
        slope: Its derivative by the hidden state, shape (token, width).
        born: The step at which the whole head was seen.
        lasts: Steps after which it is seen again.
    """

    rows: Tensor
    head: Head
    targets: Tensor
    offset: Tensor
    slope: Tensor
    born: int
    lasts: int = 1

    def rest(self, hidden: Tensor) -> Rest:
        """What the other rows amount to at these hidden states, shape (token, width)."""
        return Rest(self.offset + (self.slope * hidden).sum(dim=1), self.slope)

    def log_sum(self, hidden: Tensor) -> Tensor:
        """The ln Σ exp of all logits at these hidden states, as it is taken to be, nats, shape (token,)."""
        return torch.logaddexp(self.head.logits(hidden).logsumexp(dim=0), self.rest(hidden).logit)


@torch.no_grad()
def shortlist(head: Head, hidden: Tensor, targets: Tensor, step: int) -> Shortlist:
    """The target tokens' rows, and those whose p over that of the likeliest is largest for any of the tokens now.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
        step: The optimiser step.
    """
    score = torch.zeros(head.weight.shape[0], device=targets.device)
    seen = []
    for piece in hidden.split(head.chunk):
        logits = head.logits(piece)
        largest = logits.amax(dim=0)
        odds = logits.sub_(largest).exp_()
        score = torch.maximum(score, odds.amax(dim=1))
        seen.append((largest, odds.sum(dim=0), head.pull_back(odds)))
    score[targets] = torch.inf
    rows = score.topk(min(len(score), int(_SHARE * len(score)) + len(targets))).indices.sort().values
    small = _part(head, rows)
    largest, total, pull = (torch.cat(parts) for parts in zip(*seen, strict=True))
    near = small.logits(hidden).sub_(largest).exp_()
    others = (total - near.sum(dim=0)).clamp_(min=1e-6 * total)
    slope = (pull - small.pull_back(near)) / others[:, None]
    offset = largest + others.log() - (slope * hidden).sum(dim=1)
    return Shortlist(rows, small, torch.searchsorted(rows, targets), offset, slope, step)


def _part(head: Head, rows: Tensor) -> Head:
    return Head(head.weight[rows], None if head.bias is None else head.bias[rows], head.softcap, head.scale)


@torch.no_grad()
def _lasts(old: Shortlist | None, made: Shortlist, hidden: Tensor) -> int:
    """How many steps a shortlist lasts that takes an old one's place. Its error grows with the square of them."""
    if old is None:
        return 1
    wrong = float((made.log_sum(hidden) - old.log_sum(hidden)).abs().mean())
    if wrong > _TOLERANCE:
        return max(1, old.lasts // 2)
    return min(_STEPS, 2 * old.lasts) if wrong < _TOLERANCE / 4 else old.lasts


class Shortlists:
    """The shortlists of one training's batches, each made again after some steps: the fewer, the more it was wrong."""

    def __init__(self, head: AnyHead) -> None:
        """None is made yet. A head that caps its logits has none, nor has one that is not known."""
        self._head = head if isinstance(head, Head) and head.softcap is None else None
        self._held: dict[tuple[int, ...], Shortlist] = {}

    @property
    def able(self) -> bool:
        """Whether the head is so large that shortlists are worth it; on an accelerator it never is."""
        head = self._head
        return head is not None and len(head.weight) >= LARGE and head.weight.device.type == "cpu"

    def of(self, batch: Batch, hidden: Tensor, step: int) -> Shortlist:
        """That of a batch at a step; `hidden` predicts its target tokens, shape (token, width)."""
        assert self._head is not None
        held = self._held.get(batch.passages)
        if held is None or step >= held.born + held.lasts:
            self._held = {passages: s for passages, s in self._held.items() if step < s.born + 2 * _STEPS}
            made = shortlist(self._head, hidden, batch.targets, step)
            held = self._held[batch.passages] = replace(made, lasts=_lasts(held, made, hidden))
        return held

    def tensors(self) -> dict[str, Tensor]:
        """What steps depend on, by the names it has in a checkpoint."""
        held = enumerate(self._held.values())
        return {f"shortlist.{k}.{name}": getattr(s, name) for k, s in held for name in _TENSORS}

    def to_json(self) -> list[dict[str, Any]]:
        """The rest of it, as JSON values."""
        return [{"passages": passages, "born": s.born, "lasts": s.lasts} for passages, s in self._held.items()]

    def restore(self, values: list[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> None:
        """Take up what `to_json` and `tensors` gave."""
        self._held = {}
        for k, value in enumerate(values):
            assert self._head is not None
            device = self._head.weight.device
            named = {name: tensors[f"shortlist.{k}.{name}"].to(device) for name in _TENSORS}
            small = _part(self._head, named["rows"])
            kept = Shortlist(head=small, born=value["born"], lasts=value["lasts"], **named)
            self._held[tuple(value["passages"])] = kept
