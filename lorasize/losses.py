"""Token losses and the objectives that weigh them.

Hidden states of target positions enter; each token's loss in nats and, for training, the gradient leave. The LM head
runs in chunks on target positions only, in the model's dtype as in any server, and softmax in float32. Logits of a
bfloat16 model are that coarse: what it takes to be above ½ all the same is measured by the proof. Knows nothing of
adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from lorasize.errors import ModelError
from lorasize.records import Method
from lorasize.units import LN2

_CHUNK_BYTES = 256 * 2**20  # float32 logits held at once
RELEASE = 0.82  # MemFT: a token leaves the loss only once p exceeds this; released at ½ it drifts back (docs/log.md)


@dataclass(frozen=True)
class Head:
    """The LM head: final hidden state to logits. `softcap` as in Gemma 2, `scale` as in Cohere and Granite.

    Logits are written vocabulary-first into one buffer that every call reuses: fresh pages for a few hundred megabytes
    cost as much as the product itself (docs/log.md).
    """

    weight: Tensor  # (vocabulary, width)
    bias: Tensor | None
    softcap: float | None
    scale: float
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(16, _CHUNK_BYTES // (4 * self.weight.shape[0]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, as float32, shape (vocabulary, token); valid until the next call. Rounded to the weights' dtype."""
        out = self._buffer("logits", len(hidden))
        if self.weight.dtype == torch.float32:
            torch.mm(self.weight, hidden.t(), out=out)
        else:
            out.copy_(self.weight @ hidden.to(self.weight.dtype).t())
        if self.bias is not None:
            out.add_(self.bias[:, None])
        if self.scale != 1.0:
            out.mul_(self.scale)
        return out if self.softcap is None else out.div_(self.softcap).tanh_().mul_(self.softcap)

    def pull_back(self, logit_gradient: Tensor) -> Tensor:
        """Gradient on the hidden states, shape (token, width), from that on the uncapped logits (vocabulary, token)."""
        gradient = logit_gradient.to(self.weight.dtype).t() @ self.weight
        return gradient if self.scale == 1.0 else gradient * self.scale

    def columns(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The logits of some tokens, shape (vocabulary, token); valid until the next call."""
        if len(tokens) == logits.shape[1]:
            return logits
        return torch.index_select(logits, 1, tokens, out=self._buffer("columns", len(tokens)))

    def _buffer(self, name: str, n_tokens: int) -> Tensor:
        size = self.weight.shape[0] * n_tokens
        held = self.buffers.get(name)
        if held is None or held.numel() < size:
            self.buffers[name] = held = torch.empty(size, dtype=torch.float32, device=self.weight.device)
        return held[:size].view(self.weight.shape[0], n_tokens)


def head_of(model: Any) -> Head:
    """The LM head of a causal language model.

    Raises:
        ModelError: the model has no linear head.
    """
    layer = model.get_output_embeddings()
    if not isinstance(getattr(layer, "weight", None), Tensor):
        raise ModelError(f"{type(model).__name__} has no linear LM head")
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight.detach(), getattr(layer, "bias", None), softcap, scale)


@dataclass(frozen=True)
class TokenLosses:
    """Per target token: `loss` = −ln p in nats (float32) and whether the token is the argmax. Shape (token,)."""

    loss: Tensor
    correct: Tensor


Weigh = Callable[[TokenLosses], Tensor]


@torch.no_grad()
def token_losses(head: Head, hidden: Tensor, targets: Tensor) -> TokenLosses:
    """Loss of each target token under teacher forcing.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
    """
    parts = []
    for begin in range(0, len(targets), head.chunk):
        piece = slice(begin, begin + head.chunk)
        parts.append(_exponentiate(head.logits(hidden[piece]), targets[piece])[0])
    return TokenLosses(torch.cat([p.loss for p in parts]), torch.cat([p.correct for p in parts]))


def _exponentiate(logits: Tensor, targets: Tensor) -> tuple[TokenLosses, Tensor]:
    """Token losses, and each token's Σ exp; leaves exp(logit − max) in place of the logits."""
    at_target = logits.gather(0, targets[None, :])[0]
    largest = logits.amax(dim=0)
    total = logits.sub_(largest).exp_().sum(dim=0)
    return TokenLosses(total.log() + (largest - at_target), at_target == largest), total


@torch.no_grad()
def loss_and_gradient(head: Head, hidden: Tensor, targets: Tensor, weigh: Weigh) -> tuple[TokenLosses, Tensor, Tensor]:
    """Token losses, their weights, and the gradient of Σ weight·loss on the hidden states.

    Tokens of weight zero cost no backward product. What fits one chunk is exponentiated once; beyond that the logits of
    weighted tokens are computed again.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
        weigh: The objective.

    Returns:
        Losses, weights of shape (token,), and the gradient of shape (token, width) in the hidden states' dtype.
    """
    gradient = torch.zeros_like(hidden)
    if len(targets) <= head.chunk and head.softcap is None:
        exponentials = head.logits(hidden)
        losses, total = _exponentiate(exponentials, targets)
        weights = weigh(losses)
        rows = weights.nonzero()[:, 0]
        if len(rows):
            part = head.columns(exponentials, rows)
            gradient[rows] = _gradient(head, part, total[rows], targets[rows], weights[rows]).to(hidden.dtype)
        return losses, weights, gradient
    losses = token_losses(head, hidden, targets)
    weights = weigh(losses)
    for rows in weights.nonzero()[:, 0].split(head.chunk):
        logits = head.logits(hidden[rows])
        slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
        _, total = _exponentiate(logits, targets[rows])
        part = _gradient(head, logits, total, targets[rows], weights[rows], slope)
        gradient[rows] = part.to(hidden.dtype)
    return losses, weights, gradient


def _gradient(
    head: Head, exponentials: Tensor, total: Tensor, targets: Tensor, weights: Tensor, slope: Tensor | None = None
) -> Tensor:
    """Weight · (softmax − one-hot), pulled back through the head; `slope` is the derivative of a soft cap."""
    exponentials.mul_(weights / total)
    exponentials[targets, torch.arange(len(targets), device=targets.device)] -= weights
    return head.pull_back(exponentials if slope is None else exponentials.mul_(slope))


@torch.no_grad()
def divergence_and_gradient(head: Head, hidden: Tensor, base: Tensor) -> tuple[float, Tensor]:
    """Σ KL(base ‖ now) over tokens in nats, and its gradient on the hidden states, shape (token, width).

    Args:
        head: The LM head.
        hidden: Final hidden states now, shape (token, width).
        base: The same under the base model.
    """
    gradient, total = torch.zeros_like(hidden), 0.0
    for rows in torch.arange(len(hidden), device=hidden.device).split(max(8, head.chunk // 2)):
        wanted = torch.log_softmax(head.logits(base[rows]), dim=0)
        logits = head.logits(hidden[rows])
        slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
        found = torch.log_softmax(logits, dim=0)
        share = wanted.exp()
        total += float((share * (wanted - found)).sum())
        part = found.exp_().sub_(share)
        gradient[rows] = head.pull_back(part if slope is None else part.mul_(slope)).to(hidden.dtype)
    return total, gradient


# ---------------------------------------------------------------- objectives
@dataclass
class Objective:
    """Weights of target tokens under one method; holds what the method remembers between steps.

    `memft` is ours: MemFT-OT whose release point lies above the threshold and whose weight is the root of the loss, so
    that what is furthest from recall counts most. `memft-ot` and `memft-sw` are the paper's;
    the latter slides a window over a long passage and, on `many` records, is OT under a curriculum without a fall-back.

    Source: arXiv 2605.30260 and its published trainer.
    """

    method: Method
    threshold: float = 0.5
    release: float = RELEASE
    many: bool = False
    windows: dict[int, _Window] = field(default_factory=dict)

    def weights(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Weights before normalisation, shape (token,).

        Args:
            losses: Of the tokens of the passages, concatenated.
            passages: Index of each passage, to keep its window apart.
            lengths: Target tokens of each passage.
        """
        if self.method == "sft":
            return torch.ones_like(losses.loss)
        if self.method == "memft":
            return (losses.loss >= -math.log(max(self.release, self.threshold))) * losses.loss.sqrt()
        if self.method == "memft-ot" or self.many:
            return (losses.loss >= -math.log(self.threshold)).float()
        return self._sliding_window(losses, passages, lengths)

    def remembered(self) -> dict[str, dict[str, float]]:
        """What the method remembers between steps, as JSON values."""
        return {str(passage): asdict(window) for passage, window in self.windows.items()}

    def remember(self, windows: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what `remembered` gave."""
        self.windows = {int(passage): _Window(**window) for passage, window in windows.items()}

    def _sliding_window(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Tensor:
        pieces = zip(losses.loss.split(list(lengths)), losses.correct.split(list(lengths)), strict=True)
        return torch.cat(
            [self.windows.setdefault(p, _Window()).weights(*piece) for p, piece in zip(passages, pieces, strict=True)]
        )


def curriculum_share(progress: float) -> float:
    """Share of passages that `memft-sw` trains on when there are many: 20, 40, 60, 80, then 100 %.

    The paper sets its epoch boundaries by hand for each corpus size; here they are tenths of the step budget.

    Args:
        progress: Steps done ÷ step budget.
    """
    return min(1.0, (1 + int(progress * 10)) / 5)


@dataclass
class _Window:
    """MemFT-SW on one long passage: an anchor at the first wrong argmax, and a window that grows while it is stuck."""

    anchor: int = -1
    stuck: int = 0
    size: float = 50.0

    def weights(self, loss: Tensor, correct: Tensor) -> Tensor:
        soft = torch.sigmoid(10.0 * (loss - LN2))
        wrong = (~correct).nonzero()
        if not len(wrong):
            return soft
        self._move(int(wrong[0]))
        ahead = torch.arange(len(loss), device=loss.device) - self.anchor
        decay = torch.where(ahead >= 0, torch.exp(-ahead.clamp(min=0) / 20.0), torch.ones_like(loss))
        return soft * torch.where(ahead > self.size, torch.full_like(loss, 0.01), decay)

    def _move(self, anchor: int) -> None:
        self.stuck = self.stuck + 1 if anchor == self.anchor else 0
        self.anchor = anchor
        self.size = min(200.0, self.size + 25.0) if self.stuck >= 3 else 50.0
