"""PEFT's gate on tiny models: shut without its tokens to the last bit, open after them, and never merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import disturb

from lorasize import models
from lorasize.errors import ModelError
from lorasize.models import adapters
from lorasize.models.activation import (
    activation_tokens,
    from_prompt,
    refuse_merging_activated,
    require_gate,
    require_kept_gate,
)
from lorasize.records import Activation, Site

AFTER = Activation(text="x", alora_invocation_tokens=(7, 9))
SITES = {"llama": ("up_proj", "o_proj"), "gpt2": ("c_fc", "attn.c_proj")}


def site(name: str) -> Site:
    return Site(target_modules=SITES[name], layers_to_transform=(1, 2))


@pytest.fixture(params=SITES)
def model(request: pytest.FixtureRequest, tiny_llama: Path, tiny_gpt2: Path) -> tuple[Any, Site]:
    folder = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    return models.load(str(folder), device="cpu").model, site(request.param)


def test_without_its_tokens_the_logits_are_the_base_s_bit_for_bit(torch: Any, model: tuple[Any, Site]) -> None:
    base, where = model
    require_gate(base, where, AFTER)
    shut, opened = torch.tensor([[3, 4, 9, 7, 8]]), torch.tensor([[3, 4, 7, 9, 8]])
    with torch.no_grad():
        plain = [base(input_ids=ids).logits for ids in (shut, opened)]
        adapted = adapters.attach(base, where, 2, 0, AFTER.alora_invocation_tokens)
        disturb(torch, adapted)
        require_kept_gate(adapted)
        assert activation_tokens(adapted) == (7, 9)
        assert torch.equal(adapted(input_ids=shut).logits, plain[0])
        found = adapted(input_ids=opened).logits
        assert torch.allclose(found[:, :2], plain[1][:, :2], atol=1e-6)
        assert not torch.allclose(found[:, 2:], plain[1][:, 2:], atol=1e-3)
        told = from_prompt(adapted, (3, 4, 7, 9), 3)
        assert told == {"alora_offsets": [5]}
        again = torch.tensor([[3, 4, 7, 9, 8, 7, 9]])  # in what follows the prompt the tokens mean nothing
        assert torch.allclose(adapted(input_ids=again, **told).logits[:, :5], found, atol=1e-6)
        assert not torch.allclose(adapted(input_ids=again).logits[:, :5], found, atol=1e-3)
    adapters.detach(adapted)
    assert activation_tokens(base) == ()
    assert from_prompt(base, (7, 9), 1) == {}


def test_a_layer_of_which_peft_keeps_no_gate_is_refused(model: tuple[Any, Site]) -> None:
    """As PEFT has none of GPTQ's layers and others: there the tokens would be ignored without a word."""
    base, where = model
    adapted = adapters.attach(base, where, 2, 0, AFTER.alora_invocation_tokens)
    try:
        layer = next(m for m in adapted.modules() if getattr(m, "lora_variant", None))
        layer.lora_variant.clear()
        with pytest.raises(ModelError, match="always act on"):
            require_kept_gate(adapted)
    finally:
        adapters.detach(adapted)


def test_a_gate_that_does_not_shut_or_never_opens_is_refused(
    torch: Any, model: tuple[Any, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import variants

    base, where = model

    def always(module: Any, *, active_adapter: str, x: Any, result: Any, **_: Any) -> Any:
        return result + module.lora_B[active_adapter](module.lora_A[active_adapter](x))

    broken: tuple[Any, ...] = (always, lambda *_, result, **__: result)
    for forward in broken:
        monkeypatch.setattr(variants.ALoraLinearVariant, "forward", staticmethod(forward))
        with pytest.raises(ModelError, match="cannot be activated here"):
            require_gate(base, where, AFTER)
    monkeypatch.setattr(variants.ALoraLinearVariant, "forward", staticmethod(lambda *_, x, **__: x.view(-1, 3, 7)))
    with pytest.raises(ModelError, match="activated LoRA fails on it"):
        require_gate(base, where, AFTER)
    assert not any(hasattr(module, "lora_A") for module in base.modules())


def test_an_activated_adapter_is_not_merged() -> None:
    refuse_merging_activated(None)
    refuse_merging_activated(())
    for activation in (AFTER, (7, 9)):
        with pytest.raises(ModelError, match="cannot be merged"):
            refuse_merging_activated(activation)
