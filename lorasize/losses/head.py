"""The LM head: final hidden state to logits, and the gradient back; or the model's own logits where it is not known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.models.placement import linear_of
from lorasize.models.shapes import text_config, text_decoder

_CHUNK_BYTES = 256 * 2**20  # float32 logits held at once
_ALIGNED = 64  # docs/log/speed.md#on-a-card
LOOK = 16  # positions on which a way to run a model is compared with the model itself; not tuned


@dataclass(frozen=True)
class Head:
    """The LM head: final hidden state to logits. `softcap` as in Gemma 2, `scale` as in Cohere and Granite.

    Logits are written vocabulary-first into one buffer that every call reuses: fresh pages for a few hundred megabytes
    cost as much as the product itself (docs/log/speed.md#buffers-for-the-logits).
    """

    weight: Tensor  # (vocabulary, width)
    bias: Tensor | None
    softcap: float | None
    scale: float
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return _chunk(self.weight.shape[0])

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
        return _room(self.buffers, name, (self.weight.shape[0], n_tokens), self.weight.device)


@dataclass(frozen=True)
class OwnLogits:
    """In place of a head that does more than is known here: what it is given are the model's own logits.

    Used as a `Head` is: "hidden states" of shape (token, vocabulary) enter, and autograd has the rest of the way.
    """

    vocabulary: int
    softcap: float | None = None  # what caps them is the model's affair
    buffers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return _chunk(self.vocabulary)

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits given, as float32, shape (vocabulary, token); valid until the next call."""
        return _room(self.buffers, "logits", (self.vocabulary, len(hidden)), hidden.device).copy_(hidden.t())

    def pull_back(self, logit_gradient: Tensor) -> Tensor:
        """The gradient on what was given, shape (token, vocabulary)."""
        return logit_gradient.t()

    def columns(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """The logits of some tokens, shape (vocabulary, token)."""
        return logits if len(tokens) == logits.shape[1] else torch.index_select(logits, 1, tokens)


def _chunk(vocabulary: int) -> int:
    """Tokens at once, a multiple of `_ALIGNED` where they are that many: cards multiply rows of odd lengths slowly."""
    tokens = max(16, _CHUNK_BYTES // (4 * vocabulary))
    return tokens - tokens % _ALIGNED if tokens > _ALIGNED else tokens


AnyHead = Head | OwnLogits


def _room(held: dict[str, Tensor], name: str, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Uninitialised float32 of this shape, in a buffer that is kept by its name."""
    size = shape[0] * shape[1]
    found = held.get(name)
    if found is None or found.numel() < size:
        held[name] = found = torch.empty(size, dtype=torch.float32, device=device)
    return found[:size].view(shape)


def head_of(model: Any) -> Head:
    """The LM head of a causal language model.

    Raises:
        ModelError: the model has no linear head.
    """
    layer = model.get_output_embeddings()
    linear = linear_of(layer, model)
    if linear is None:
        raise ModelError(f"{type(model).__name__} has no linear LM head")
    config = text_config(model)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return Head(*linear, softcap, scale)


def decoder(model: Any) -> nn.Module:
    """The model without its LM head: returns final hidden states after the last norm."""
    return text_decoder(model)


@torch.no_grad()
def checked_head(model: Any, ids: Tensor) -> AnyHead:
    """The LM head, seen to give the model's own logits on the first of these token ids (batch, position).

    `OwnLogits` where it does not: the model has no linear head, or does more to its logits than is known here.

    Raises:
        ModelError: its logits are no numbers, or those of a token depend on later ones.
    """
    few = ids[:1, :LOOK]
    own = model(input_ids=few, use_cache=False).logits[0]
    if not bool(own.isfinite().all()):
        raise ModelError(f"{type(model).__name__}: its logits are no numbers: its weights or its config are damaged")
    if _looks_ahead(model, few, own):
        raise ModelError(
            f"{type(model).__name__} looks ahead: what it says of a token depends on later ones, so it cannot write "
            "text token by token. Use a causal language model"
        )
    try:
        head = head_of(model)
        hidden = decoder(model)(input_ids=few, use_cache=False).last_hidden_state[0]
        found = head.logits(hidden).t()
    except Exception:  # whatever its parts do when they are taken apart, the whole has just given logits
        return OwnLogits(own.shape[-1])
    return head if alike(found, own) else OwnLogits(own.shape[-1])


def _looks_ahead(model: Any, ids: Tensor, logits: Tensor) -> bool:
    """Whether another last token changes the logits at most positions before it."""
    others = ids.clone()
    others[0, -1] = ids[0, 0] if ids[0, 0] != ids[0, -1] else (ids[0, -1] + 1) % logits.shape[-1]
    found = model(input_ids=others, use_cache=False).logits[0]
    n_changed = sum(not alike(now, before) for now, before in zip(found[:-1], logits[:-1], strict=True))
    return n_changed > len(logits) // 2


def alike(found: Tensor, wanted: Tensor) -> bool:
    """Whether two ways to compute the same differ by rounding alone, at every position: the last axis is compared.

    Lengths of differences are compared with lengths, so that it does not depend on how a processor orders its sums:
    of float32 and float16 one part in a hundred is allowed, of bfloat16 eight of its steps.
    """
    if found.shape != wanted.shape:
        return False
    most = max(1e-2, 8 * torch.finfo(wanted.dtype).eps)
    off = (found.float() - wanted.float()).norm(dim=-1)
    return bool((off <= most * wanted.float().norm(dim=-1)).all())
