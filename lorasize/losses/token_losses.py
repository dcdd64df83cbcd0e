"""Token losses and the objectives that weigh them.

Hidden states of target positions enter; each token's loss in nats and, for training, the gradient leave. The LM head
runs in chunks on target positions only, in the model's dtype as in any server, and softmax in float32. Logits of a
bfloat16 model are that coarse: what it takes to be above ½ all the same is measured by the proof. Knows nothing of
adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lorasize.losses.head import AnyHead, Head


@dataclass(frozen=True)
class TokenLosses:
    """Per target token: `loss` = −ln p in nats (float32) and whether the token is the argmax. Shape (token,)."""

    loss: Tensor
    correct: Tensor


Weigh = Callable[[TokenLosses], Tensor]


@torch.no_grad()
def token_losses(head: AnyHead, hidden: Tensor, targets: Tensor) -> TokenLosses:
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


@dataclass(frozen=True)
class Rest:
    """What all rows of a head but a few amount to, as one more row for each target token.

    Attributes:
        logit: ln Σ exp of their logits, shape (token,), float32.
        row: The derivative of that by the hidden state, shape (token, width).
    """

    logit: Tensor
    row: Tensor


def _exponentiate(logits: Tensor, targets: Tensor, rest: Rest | None = None) -> tuple[TokenLosses, Tensor]:
    """Token losses, and each token's Σ exp; leaves exp(logit − max) in place of the logits."""
    at_target = logits.gather(0, targets[None, :])[0]
    largest = logits.amax(dim=0)
    total = logits.sub_(largest).exp_().sum(dim=0)
    if rest is not None:
        total += (rest.logit - largest).exp_()
    return TokenLosses(total.log() + (largest - at_target), at_target == largest), total


@torch.no_grad()
def loss_and_gradient(
    head: AnyHead, hidden: Tensor, targets: Tensor, weigh: Weigh, rest: Rest | None = None
) -> tuple[TokenLosses, Tensor, Tensor]:
    """Token losses, their weights, and the gradient of Σ weight·loss on the hidden states.

    Tokens of weight zero cost no backward product. What fits one chunk is exponentiated once; beyond that the logits of
    weighted tokens are computed again.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
        weigh: The objective.
        rest: Of a part of a head, what its other rows amount to.

    Returns:
        Losses, weights of shape (token,), and the gradient of shape (token, width) in the hidden states' dtype.
    """
    gradient = torch.zeros_like(hidden)
    if rest is not None or (len(targets) <= head.chunk and head.softcap is None):
        exponentials = head.logits(hidden)
        likeliest = exponentials.amax(dim=0)
        losses, total = _exponentiate(exponentials, targets, rest)
        weights = weigh(losses)
        rows = weights.nonzero()[:, 0]
        if len(rows):
            part = head.columns(exponentials, rows)
            gradient[rows] = _gradient(head, part, total[rows], targets[rows], weights[rows]).to(hidden.dtype)
        if rest is not None:
            share = weights * (rest.logit - likeliest).exp_() / total
            gradient += (share[:, None] * rest.row).to(hidden.dtype)
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


@torch.no_grad()
def loss_and_gradient_of_all(
    head: AnyHead, hidden: Tensor, targets: Tensor, weigh: Weigh, live: Tensor | None = None
) -> tuple[TokenLosses, Tensor, Tensor]:
    """As `loss_and_gradient`, with a backward product for every token whatever its weight: no value decides a shape.

    An accelerator need not wait for the host, and launches can be recorded.

    Args:
        head: The LM head.
        hidden: Final hidden states that predict the targets, shape (token, width).
        targets: Token ids, shape (token,).
        weigh: The objective, which is asked chunk by chunk.
        live: Factor on each token's weight, shape (token,); 0 for padding.
    """
    seen, weights, gradients = [], [], []
    for begin in range(0, len(targets), head.chunk):
        piece = slice(begin, begin + head.chunk)
        logits = head.logits(hidden[piece])
        slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
        losses, total = _exponentiate(logits, targets[piece])
        wanted = weigh(losses) if live is None else weigh(losses) * live[piece]
        seen.append(losses)
        weights.append(wanted)
        gradients.append(_gradient(head, logits, total, targets[piece], wanted, slope).to(hidden.dtype))
    losses = TokenLosses(torch.cat([part.loss for part in seen]), torch.cat([part.correct for part in seen]))
    return losses, torch.cat(weights), torch.cat(gradients)


def _gradient(
    head: AnyHead, exponentials: Tensor, total: Tensor, targets: Tensor, weights: Tensor, slope: Tensor | None = None
) -> Tensor:
    """Weight · (softmax − one-hot), pulled back through the head; `slope` is the derivative of a soft cap."""
    exponentials.mul_(weights / total)
    exponentials[targets, torch.arange(len(targets), device=targets.device)] -= weights
    return head.pull_back(exponentials if slope is None else exponentials.mul_(slope))


@torch.no_grad()
def drawn_gradient(head: AnyHead, hidden: Tensor, draw: torch.Generator) -> Tensor:
    """Gradient on the hidden states of the loss of labels drawn from the predictions themselves, (token, width)."""

    def less_drawn(share: Tensor, rows: Tensor) -> Tensor:
        labels = torch.multinomial(share.t(), 1, generator=draw)[:, 0]
        share[labels, torch.arange(len(rows), device=rows.device)] -= 1.0
        return share

    return _by_predictions(head, hidden, less_drawn)


@torch.no_grad()
def divergence_gradient(head: AnyHead, hidden: Tensor, base: Tensor) -> Tensor:
    """Gradient of each token's KL(base ‖ now) on its hidden state now, nats, shape (token, width).

    Args:
        head: The LM head.
        hidden: Final hidden states now, shape (token, width).
        base: Predictions of the base model, probabilities of shape (vocabulary, token).
    """
    return _by_predictions(head, hidden, lambda now, rows: now.sub_(base[:, rows]))


def _by_predictions(head: AnyHead, hidden: Tensor, excess: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """What `excess` makes of the predictions, shape (row, token), pulled back through the head; some tokens at a time.

    Args:
        head: The LM head.
        hidden: Final hidden states, shape (token, width).
        excess: Of the predictions of some tokens and their numbers: the gradient on their logits.
    """
    gradient = torch.zeros_like(hidden)
    for rows in torch.arange(len(hidden), device=hidden.device).split(max(8, head.chunk // 2)):
        logits = head.logits(hidden[rows])
        slope = None if head.softcap is None else 1.0 - (logits / head.softcap) ** 2
        wrong = excess(torch.softmax(logits, dim=0), rows)
        gradient[rows] = head.pull_back(wrong if slope is None else wrong.mul_(slope)).to(hidden.dtype)
    return gradient


@dataclass(frozen=True)
class Predicted:
    """What a base model predicts at each of some tokens, as far as others are compared with it.

    A head that is a plain product is linear in the hidden state, so that KL(base ‖ now) needs no more of the base's
    predictions than what the head's rows amount to under them: nothing of the vocabulary's size is kept.

    Attributes:
        loss: −ln p of the target, nats, shape (token,), float32, as are all but `likeliest`.
        likeliest: The likeliest token, shape (token,).
        row: Σ p · row of the head, shape (token, width).
        level: That times the hidden state, less ln Σ exp of the logits, nats, shape (token,); a bias cancels out.
    """

    loss: Tensor
    likeliest: Tensor
    row: Tensor
    level: Tensor


@torch.no_grad()
def predicted(head: AnyHead, base: Tensor, targets: Tensor) -> Predicted | None:
    """What the base model predicts at each token; None where the head is more than a product in float32.

    Args:
        head: The LM head.
        base: Final hidden states of the base model, shape (token, width).
        targets: Token ids, shape (token,).
    """
    if not isinstance(head, Head) or head.softcap is not None or head.weight.dtype != torch.float32:
        return None
    parts: list[list[Tensor]] = []
    for rows in torch.arange(len(base), device=base.device).split(head.chunk):
        logits = head.logits(base[rows])
        likeliest = logits.argmax(dim=0)
        normal = torch.logsumexp(logits, dim=0)
        at_target = logits.gather(0, targets[rows][None, :])[0]
        row = head.pull_back(logits.sub_(normal).exp_())
        level = (row * base[rows]).sum(dim=1) - normal
        parts.append([normal - at_target, likeliest, row, level])
    return Predicted(*(torch.cat(column) for column in zip(*parts, strict=True)))


@torch.no_grad()
def compared(head: AnyHead, hidden: Tensor, base: Tensor | Predicted, targets: Tensor) -> Tensor:
    """What became of each token: loss before, loss after, KL(base ‖ now), all in nats, and 1 where the argmax stays.

    Args:
        head: The LM head.
        hidden: Final hidden states now, shape (token, width).
        base: The same under the base model, or what it predicts.
        targets: Token ids, shape (token,).

    Returns:
        Shape (token, 4), float32, on the host.
    """
    if isinstance(base, Predicted):
        return _compared_by_rows(head, hidden, base, targets)
    parts = []
    for rows in torch.arange(len(hidden), device=hidden.device).split(max(8, head.chunk // 2)):
        before = torch.log_softmax(head.logits(base[rows]), dim=0)
        after = torch.log_softmax(head.logits(hidden[rows]), dim=0)
        at = targets[rows][None, :]
        losses = [-before.gather(0, at)[0], -after.gather(0, at)[0]]
        same = (before.argmax(dim=0) == after.argmax(dim=0)).float()
        parts.append(torch.stack([*losses, (before.exp() * (before - after)).sum(dim=0), same], dim=1).cpu())
    return torch.cat(parts)


def _compared_by_rows(head: AnyHead, hidden: Tensor, base: Predicted, targets: Tensor) -> Tensor:
    """The same by what the head's rows amount to: one product with the head where there were two."""
    parts = []
    for rows in torch.arange(len(hidden), device=hidden.device).split(head.chunk):
        logits = head.logits(hidden[rows])
        likeliest = logits.argmax(dim=0)
        at_target = logits.gather(0, targets[rows][None, :])[0]
        largest = logits.gather(0, likeliest[None, :])[0]
        normal = logits.sub_(largest).exp_().sum(dim=0).log() + largest
        divergence = base.level[rows] - (base.row[rows] * hidden[rows]).sum(dim=1) + normal
        same = (likeliest == base.likeliest[rows]).float()
        parts.append(torch.stack([base.loss[rows], normal - at_target, divergence, same], dim=1).cpu())
    return torch.cat(parts)
