"""The LM head: final hidden state to logits, and the gradient back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.models.placement import linear_of

_CHUNK_BYTES = 256 * 2**20  # float32 logits held at once


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
    linear = linear_of(layer, model)
    if linear is None:
        raise ModelError(f"{type(model).__name__} has no linear LM head")
    config = model.config
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(*linear, softcap, scale)


def decoder(model: Any) -> nn.Module:
    """The model without its LM head: returns final hidden states after the last norm."""
    found: nn.Module = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    return found


@torch.no_grad()
def checked_head(model: Any, ids: Tensor) -> Head:
    """The LM head, seen to give the model's own logits on the first of these token ids (batch, position).

    Raises:
        ModelError: the model has no linear head, is damaged, or does to its logits what is not known here.
    """
    head, few = head_of(model), ids[:1, :16]
    hidden = decoder(model)(input_ids=few, use_cache=False).last_hidden_state[0]
    own = model(input_ids=few, use_cache=False).logits[0].float()
    if not bool(own.isfinite().all()):
        raise ModelError(f"{type(model).__name__}: its logits are no numbers: its weights or its config are damaged")
    if not torch.allclose(head.logits(hidden).t(), own, rtol=1e-2, atol=1e-2 * float(own.abs().max())):
        raise ModelError(f"{type(model).__name__} does more to its logits than is known here: it is not supported")
    return head
