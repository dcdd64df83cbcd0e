"""Activated LoRA: PEFT's own gate, which lets an adapter act from certain tokens of the prompt on and nowhere else.

`generate` opens it by itself. A forward pass that is called by hand has to be told where, since it may read a single
token, or a target in which the tokens stand as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from lorasize.errors import ModelError
from lorasize.models import adapters, placement
from lorasize.models.devices import forked_rng
from lorasize.records import Activation, Site

_TRIED = 0.1  # spread of the random numbers of an adapter that the gate is tried with
_FEW = 4  # tokens it is tried on
_ALIKE = 0.05  # relative, of logits: rounding is less, that adapter more


def activation_tokens(model: Any) -> tuple[int, ...]:
    """The tokens that the adapter in a model acts after; none where it always acts, or where there is no adapter."""
    config = getattr(model, "peft_config", {}).get("default")
    return tuple(getattr(config, "alora_invocation_tokens", None) or ())


def from_prompt(model: Any, prompt_ids: Sequence[int], n_after: int) -> Mapping[str, Any]:
    """What a forward pass over a prompt and `n_after` tokens more must be told; nothing of a plain adapter."""
    tokens = activation_tokens(model)
    if not tokens:
        return {}
    begin = Activation(text="", alora_invocation_tokens=tokens).begins(prompt_ids)
    return {"alora_offsets": [None if begin is None else len(prompt_ids) + n_after - begin]}


def refuse_merging_activated(activation: Activation | Sequence[int] | None) -> None:
    """Refuse to add an activated adapter to the weights.

    Raises:
        ModelError: it is one.
    """
    if activation:
        raise ModelError("an activated adapter cannot be merged: within the weights it would always act")


@torch.no_grad()
def require_kept_gate(adapted: PeftModel) -> None:
    """Refuse an activated adapter where PEFT does not leave the base model as it is, bit for bit, without its tokens.

    PEFT knows no gate on layers of some quantised weights: there the adapter would always act.

    Raises:
        ModelError: naming the layer, where it is known.
    """
    tokens = activation_tokens(adapted)
    if not tokens:
        return
    for name, module in adapters.base_of(adapted).named_modules():
        if isinstance(module, BaseTunerLayer) and "default" not in getattr(module, "lora_variant", {}):
            kind = type(module.get_base_layer()).__name__
            raise ModelError(f"PEFT would let the adapter always act on {name} ({kind}): it cannot be activated here")
    ids = _without(adapters.base_of(adapted), tokens)
    found = _logits(adapted, ids)
    with adapted.disable_adapter():
        plain, again = _logits(adapted, ids), _logits(adapted, ids)
    if not torch.equal(found, plain) and torch.equal(plain, again):
        raise _broken(adapters.base_of(adapted))


@torch.no_grad()
def require_gate(model: Any, site: Site, activation: Activation) -> None:
    """Refuse a model on which PEFT's gate does not open or does not shut, tried with an adapter of random numbers.

    Raises:
        ModelError: it does not, or it cannot be tried.
    """
    tokens = activation.alora_invocation_tokens
    others = _without(model, tokens)
    ids = torch.cat([others, others.new_tensor([tokens])], dim=1)
    plain = _logits(model, ids)
    adapted = adapters.attach(model, site, 1, 0, tokens)
    try:
        with forked_rng(ids.device):
            for parameter in adapters.parameters(adapted).values():
                parameter.normal_(std=_TRIED)
        require_kept_gate(adapted)
        found = _logits(adapted, ids)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{type(model).__name__}: PEFT's activated LoRA fails on it ({first:.200})") from error
    finally:
        adapters.detach(adapted)
    before = slice(0, ids.shape[1] - len(tokens))
    moved = (found[0, before].float() - plain[0, before].float()).norm()
    if not moved <= _ALIKE * plain[0, before].float().norm() or torch.equal(found[0, -1], plain[0, -1]):
        raise _broken(model)


def _broken(model: Any) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: PEFT's activated LoRA acts where it should not, or not where it should: the adapter "
        "cannot be activated here"
    )


def _without(model: Any, tokens: Sequence[int]) -> Tensor:
    """A few ids, shape (1, position), that none of the tokens is; from the middle, since the first may say nothing."""
    n = model.get_input_embeddings().weight.shape[0]
    others = [token for token in (*range(n // 2, n), *range(n // 2)) if token not in tokens]
    return torch.tensor([others[:_FEW]], device=placement.input_device(model))


def _logits(model: Any, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
