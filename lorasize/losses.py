"""Token losses and the objectives that weigh them.

Hidden states of target positions enter; each token's loss in nats and, for training, the gradient leave. The LM head
and softmax run in chunks on target positions only, in float32 whatever the model's dtype: near p = ½ a bfloat16 logit
is too coarse to decide the threshold. Knows nothing of adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.records import Method
from lorasize.units import LN2

_CHUNK_BYTES = 256 * 2**20  # float32 logits held at once
RELEASE = 0.7  # MemFT: a token leaves the loss only once p exceeds this; released at ½ it drifts back (docs/log.md)


@dataclass(frozen=True)
class Head:
    """The LM head: final hidden state to logits. `softcap` as in Gemma 2, `scale` as in Cohere and Granite."""

    weight: Tensor  # (vocabulary, width)
    bias: Tensor | None
    softcap: float | None
    scale: float

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32, shape (token, vocabulary)."""
        raw = nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        raw = raw if self.scale == 1.0 else raw * self.scale
        return raw if self.softcap is None else self.softcap * torch.tanh(raw / self.softcap)

    def pull_back(self, logit_gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient on the hidden state, shape (token, width), from that on the logits; may overwrite its input."""
        if self.softcap is not None:
            logit_gradient = logit_gradient * (1.0 - (logits / self.softcap) ** 2)
        gradient = logit_gradient.to(self.weight.dtype) @ self.weight
        return gradient if self.scale == 1.0 else gradient * self.scale

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(16, _CHUNK_BYTES // (4 * self.weight.shape[0]))


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
    return Head(layer.weight, getattr(layer, "bias", None), getattr(config, "final_logit_softcapping", None), scale)


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
    parts = [
        _losses_of(head.logits(hidden[i : i + head.chunk]), targets[i : i + head.chunk])[:2]
        for i in range(0, len(targets), head.chunk)
    ]
    return TokenLosses(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def _losses_of(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    at_target = logits.gather(1, targets[:, None])[:, 0]
    normaliser = torch.logsumexp(logits, dim=1)
    return normaliser - at_target, logits.argmax(dim=1) == targets, normaliser


@torch.no_grad()
def loss_and_gradient(head: Head, hidden: Tensor, targets: Tensor, weigh: Weigh) -> tuple[TokenLosses, Tensor, Tensor]:
    """Token losses, their weights, and the gradient of Σ weight·loss on the hidden states.

    Tokens of weight zero cost no backward product. Logits of the last chunk are reused, earlier ones are computed again
    for the tokens that need a gradient.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
        weigh: The objective.

    Returns:
        Losses, weights of shape (token,), and the gradient of shape (token, width) in the hidden states' dtype.
    """
    if len(targets) <= head.chunk:
        logits = head.logits(hidden)
        loss, correct, normaliser = _losses_of(logits, targets)
        losses = TokenLosses(loss, correct)
        weights = weigh(losses)
        rows = weights.nonzero()[:, 0]
        gradient = torch.zeros_like(hidden)
        if len(rows):
            part = _gradient(head, logits[rows], normaliser[rows], targets[rows], weights[rows])
            gradient[rows] = part.to(hidden.dtype)
        return losses, weights, gradient
    losses = token_losses(head, hidden, targets)
    weights = weigh(losses)
    gradient = torch.zeros_like(hidden)
    active = weights.nonzero()[:, 0]
    for rows in active.split(head.chunk):
        logits = head.logits(hidden[rows])
        normaliser = torch.logsumexp(logits, dim=1)
        gradient[rows] = _gradient(head, logits, normaliser, targets[rows], weights[rows]).to(hidden.dtype)
    return losses, weights, gradient


def _gradient(head: Head, logits: Tensor, normaliser: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    probabilities = torch.exp(logits - normaliser[:, None])
    probabilities[torch.arange(len(targets)), targets] -= 1.0
    return head.pull_back(probabilities.mul_(weights[:, None]), logits)


# ---------------------------------------------------------------- objectives
@dataclass
class Objective:
    """Weights of target tokens under one method; holds what the method remembers between steps.

    `memft` is ours: MemFT-OT whose release point lies above the threshold. `memft-ot` and `memft-sw` are the paper's;
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
            return (losses.loss >= -math.log(max(self.release, self.threshold))).float()
        stubborn = (losses.loss >= -math.log(self.threshold)).float()
        if self.method == "memft-ot":
            return stubborn if bool(stubborn.any()) else torch.ones_like(stubborn)
        return stubborn if self.many else self._sliding_window(losses, passages, lengths)

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
    return min(1.0, 0.2 * (1 + int(progress * 10)))


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
