"""How probable the LM head can make a token at all: tokens whose rows it can hardly tell apart.

Many vocabularies hold rows that are the same, or nearly so: those of padding, and of tokens that were never trained.
Between two equal rows no hidden state can prefer either, so neither token ever exceeds ½, whatever the adapter.

For a hidden state h no longer than R, the logits of tokens v and u differ by at most R·|w_v − w_u| + b_v − b_u. So the
odds p / (1 − p) of v are at most 1 / Σ_u exp(−R·|w_v − w_u| − b_v + b_u): a bound from above, since no single h reaches
all these differences at once.

Source: tokens that no hidden state can make the likeliest are known from Demeter et al. 2020 (arXiv 2005.02433) and
Grivas et al. 2022 (arXiv 2203.06462). The bound by distances is ours: docs/log/law.md#alike-tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasize.losses.head import Head, checked_head, decoder
from lorasize.losses.neutral import neutral_text, windows
from lorasize.models import BaseModel
from lorasize.models.once import once

# In nats of log-odds, and in lengths of the longest hidden state seen: docs/log/law.md#alike-tokens
DISTINCT = 20.0  # a probe draws tokens whose bound is above this
NARROW = 5.0  # a token whose bound is below this costs steps, if it can be held at all
LONGEST = 100.0  # training made hidden states up to 5 times as long, none this long

_BLOCK_BYTES = 256 * 2**20  # of distances held at once
_WINDOWS = 2  # of the neutral text, to see how long hidden states are; not tuned
_NEAREST = 64  # rows whose distance is taken directly: that by products is rough where it is small


@dataclass(frozen=True)
class Reach:
    """What the head can do with hidden states of the size that the model makes.

    Attributes:
        head: The LM head.
        longest: Length of the longest hidden state seen on the neutral text.
    """

    head: Head
    longest: float

    @torch.no_grad()
    def log_odds(self, tokens: Sequence[int], times: float = 1.0) -> Tensor:
        """An upper bound on ln(p / (1 − p)) of each token, shape (token,).

        Over all hidden states of at most `times` the length of the longest seen.
        """
        rows = self.head.weight
        wanted = torch.tensor(tokens, dtype=torch.long, device=rows.device)
        squares = rows.float().square().sum(dim=1)
        parts = wanted.split(max(1, _BLOCK_BYTES // (4 * len(rows))))
        return torch.cat([self._log_odds(part, squares, times) for part in parts] or [squares[:0]]).cpu()

    @torch.no_grad()
    def twins(self, token: int) -> list[int]:
        """Tokens that no hidden state of `LONGEST` times the longest can tell from this one, nearest first.

        Empty where one can lift this token above ½ against all others. Every distance is taken directly: this is for
        few tokens, of which something is then said that must be true.
        """
        rows = self.head.weight.float()
        distances = torch.linalg.vector_norm(rows - rows[token], dim=1)
        margins = self._margins(distances[None], torch.tensor([token], device=rows.device), LONGEST)[0]
        margins[token] = torch.inf
        if float(-torch.logsumexp(-margins, dim=0)) > 0.0:
            return []
        order: list[int] = margins.argsort()[: int((margins < 1.0).sum())].tolist()
        return order

    def _log_odds(self, tokens: Tensor, squares: Tensor, times: float) -> Tensor:
        rows, wanted = self.head.weight.float(), self.head.weight[tokens].float()
        distances = torch.addmm(squares, wanted, rows.t(), alpha=-2.0).add_(squares[tokens, None])
        distances = distances.clamp_(min=0.0).sqrt_()
        near = distances.topk(min(_NEAREST, len(rows)), largest=False).indices
        distances.scatter_(1, near, torch.linalg.vector_norm(wanted[:, None] - rows[near], dim=2))
        margins = self._margins(distances, tokens, times)
        margins[torch.arange(len(tokens), device=tokens.device), tokens] = torch.inf  # a token is no rival to itself
        return -torch.logsumexp(margins.neg_(), dim=1)

    def _margins(self, distances: Tensor, tokens: Tensor, times: float) -> Tensor:
        """By how much each token's logit can exceed each other's, from their rows' distances (token, vocabulary)."""
        margins = distances.mul_(self.longest * times * self.head.scale)
        if self.head.bias is not None:
            bias = self.head.bias.float() * self.head.scale
            margins += bias[tokens, None] - bias
        if self.head.softcap is not None:  # it brings logits nearer to each other, and all within the cap
            margins.clamp_(0.0, 2.0 * self.head.softcap)
        return margins


@dataclass(frozen=True)
class Hardship:
    """Tokens that a head can hardly tell from others.

    Attributes:
        impossible: Each token that no adapter can lift above ½, with its twins, nearest first.
        narrow: The bound on ln(p / (1 − p)) of each token that the head tells only just from others.
    """

    impossible: Mapping[int, Sequence[int]]
    narrow: Mapping[int, float]


def hardship(base: BaseModel, tokens: Iterable[int]) -> Hardship:
    """Which of these tokens no adapter can hold, and which cost steps, if they can be held at all.

    Nothing is said of a model whose head is not known.
    """
    reach = reach_of(base)
    return Hardship({}, {}) if reach is None else hardship_under(reach, tokens)


def hardship_under(reach: Reach, tokens: Iterable[int]) -> Hardship:
    """The same of a head by itself."""
    distinct = sorted(set(tokens))
    bounds = dict(zip(distinct, reach.log_odds(distinct).tolist(), strict=True))
    narrow = {token: bound for token, bound in bounds.items() if bound < NARROW}
    outer = dict(zip(narrow, reach.log_odds(list(narrow), LONGEST).tolist(), strict=True))
    impossible = {token: twins for token in narrow if outer[token] <= 0.0 and (twins := reach.twins(token))}
    return Hardship(impossible, {token: bound for token, bound in narrow.items() if token not in impossible})


@once
@torch.no_grad()
def reach_of(base: BaseModel) -> Reach | None:
    """What the head of this model can do with hidden states as long as those of the neutral text.

    None where the model does more to its logits than is known here.
    """
    texts = windows(neutral_text(), base.tokenizer, base.max_positions - 1, base.n_ids)[:_WINDOWS]
    ids = [torch.tensor([[*text.prompt_ids, *text.target_ids]], device=base.device) for text in texts]
    head = checked_head(base.model, ids[0])
    if not isinstance(head, Head):
        return None
    states = [decoder(base.model)(input_ids=some, use_cache=False).last_hidden_state[0] for some in ids]
    return Reach(head, max(float(torch.linalg.vector_norm(hidden.float(), dim=1).max()) for hidden in states))
