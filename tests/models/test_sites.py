"""Where adapters may sit: told from a forward pass, and PEFT puts them there and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.multimodal import MULTIMODAL, save_multimodal

from lorasize import models
from lorasize.errors import ModelError
from lorasize.models import adapters, linear_shapes, widening_module
from lorasize.planning.depths import nearest_layers
from lorasize.records import Site

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
EVERYWHERE = [0, 1, 2, 3]
LAYERS = ["linear_attention"] * 3 + ["full_attention"]
DELTA: dict[str, Any] = {
    "layer_types": LAYERS, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PER_LAYER: dict[str, Any] = {"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 64}


def tiny(name: str, **changes: Any) -> Any:
    """A random model of this type."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**{**SHAPE, **changes})).eval()


@pytest.mark.parametrize(
    ("name", "changes", "module", "layers"),
    [
        ("llama", {}, "up_proj", EVERYWHERE),
        ("qwen3", {"head_dim": 16}, "up_proj", EVERYWHERE),  # its q_proj widens too
        ("phi3", {"hidden_size": 32}, "gate_up_proj", EVERYWHERE),
        ("gpt_neox", {}, "dense_h_to_4h", EVERYWHERE),
        ("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 4}, "c_fc", EVERYWHERE),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}, "fc1", EVERYWHERE),
        ("falcon_h1", MAMBA | {"mamba_d_ssm": 64}, "up_proj", EVERYWHERE),  # its gate runs last
        ("gemma4_text", PER_LAYER | {"layer_types": LAYERS[-1:] * 4}, "up_proj", EVERYWHERE),
        ("lfm2", {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}, "w3", EVERYWHERE),
        ("bamba", MAMBA | {"attn_layer_indices": [1, 3]}, "up_proj", EVERYWHERE),
        ("qwen3_5_text", DELTA, "up_proj", EVERYWHERE),
        ("jamba", {"num_experts": 4, "mamba_dt_rank": 4, "mamba_d_state": 8}, "up_proj", [0, 2]),
        ("mamba", {"state_size": 8}, "in_proj", EVERYWHERE),
        ("mixtral", {"num_local_experts": 4}, "o_proj", EVERYWHERE),
        ("gpt_oss", {"num_local_experts": 4, "head_dim": 16}, "o_proj", EVERYWHERE),  # its q_proj widens too
        ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16}, "up_proj", EVERYWHERE),
    ],
)  # fmt: skip
def test_an_adapter_sits_where_the_stream_widens_and_comes_back(
    torch: Any, name: str, changes: dict[str, Any], module: str, layers: list[int]
) -> None:
    shapes = linear_shapes(tiny(name, **changes))
    assert widening_module(shapes) == module
    assert list(shapes[module].in_layers) == layers


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral", {"num_local_experts": 4}),
        ("qwen3_moe", EXPERTS),
        ("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 16}),
        ("gpt_oss", {"num_local_experts": 4}),
        ("granitemoe", {"num_local_experts": 4}),
        ("olmoe", EXPERTS),
        ("jetmoe", {"num_local_experts": 4, "kv_channels": 8}),
    ],
)
def test_experts_and_routers_carry_no_adapter(torch: Any, name: str, changes: dict[str, Any]) -> None:
    model = tiny(name, **changes)
    shapes = linear_shapes(model)
    assert shapes
    assert not [shape.path for shape in shapes.values() if shape.d_out in (1, 4) or "experts" in shape.path]


def test_an_expert_in_a_list_carries_no_adapter(torch: Any) -> None:
    """Called with all tokens or not: routing may send every one of these few to it."""
    model = tiny("llama")
    for layer in model.model.layers:
        layer.mlp.experts = torch.nn.ModuleList([layer.mlp.up_proj])
        del layer.mlp.up_proj
        layer.mlp.forward = lambda x, m=layer.mlp: m.down_proj(m.act_fn(m.gate_proj(x)) * m.experts[0](x))
    shapes = linear_shapes(model)
    assert "gate_proj" in shapes
    assert not [shape.path for shape in shapes.values() if "experts" in shape.path]


def test_a_layer_that_is_never_called_carries_no_adapter(torch: Any) -> None:
    model = tiny("llama")
    model.model.layers[2].self_attn.spare_proj = torch.nn.Linear(32, 64)
    model.model.layers[1].mlp.forward = lambda x: x
    shapes = linear_shapes(model)
    assert "spare_proj" not in shapes
    assert list(shapes["up_proj"].in_layers) == [0, 2, 3]
    assert list(shapes["q_proj"].in_layers) == EVERYWHERE


def test_an_adapter_keeps_off_what_is_never_called(torch: Any) -> None:
    """PEFT goes by names alone: it is told of a module of the same name that the layer passes over."""
    model = tiny("llama")
    model.model.layers[1].mlp.forward = lambda x: x
    site = Site(target_modules=("up_proj", "q_proj"), layers_to_transform=(1, 2))
    adapted = adapters.attach(model, site, 2, 0)
    where = {name.split(".lora_")[0].split("layers.")[1] for name in adapters.parameters(adapted)}
    assert where == {"1.self_attn.q_proj", "2.self_attn.q_proj", "2.mlp.up_proj"}
    counted = adapters.count_parameters(linear_shapes(adapters.detach(adapted)), site, 2)
    assert counted == 2 * (2 * 64 + 80)


def test_a_module_that_the_model_lacks_is_refused(torch: Any) -> None:
    with pytest.raises(ModelError, match="LlamaForCausalLM has no linear layer w3 that sees every token"):
        adapters.attach(tiny("llama"), Site(target_modules=("w3",), layers_to_transform=(1,)), 1, 0)


def test_a_model_that_cannot_be_run_is_refused_where_it_is_loaded(
    torch: Any, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError("no such output")

    monkeypatch.setattr(LlamaForCausalLM, "forward", fail)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: a forward pass .* fails \(AttributeError: no such output"):
        models.load(str(tiny_llama), device="cpu")


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_model_is_adapted_in_its_language_model_alone(
    torch: Any, name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """The vision tower is the deeper of the two, and some have modules of the same names in it."""
    import transformers
    from peft import PeftModel

    folder = save_multimodal(name, tokenizer, tmp_path / "base")
    base = models.load(str(folder), device="cpu")
    assert (base.n_layers, base.max_positions) == (4, 256)
    assert (models.n_layers(folder), models.max_positions(folder)) == (4, 256)
    assert widening_module(linear_shapes(base.model)) == "up_proj"
    adapted = adapters.attach(base.model, Site(target_modules=("q_proj", "up_proj"), layers_to_transform=(1, 3)), 2, 0)
    with torch.no_grad():
        for parameter in adapters.parameters(adapted).values():
            parameter.add_(0.1)
    assert len(adapters.parameters(adapted)) == 8
    assert not [path for path in adapters.parameters(adapted) if "vision" in path or "visual" in path]
    adapters.save(adapted, tmp_path / "adapter", "base")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits = adapted(input_ids=ids).logits
        whole = transformers.AutoModelForImageTextToText.from_pretrained(folder)
        plain = whole.eval()(input_ids=ids).logits
        served = PeftModel.from_pretrained(whole, str(tmp_path / "adapter")).eval()(input_ids=ids).logits
    assert torch.allclose(logits, served, atol=1e-5)
    assert not torch.allclose(plain, served, atol=1e-3)


def test_the_nearest_layers_stand_in() -> None:
    assert nearest_layers((16, 20), range(30)) == (16, 20)
    assert nearest_layers((16, 20), (3, 19)) == (3, 19)
    assert nearest_layers((20, 16, 18), (17, 19)) == (17, 19)  # fewer have it than are wanted
    assert nearest_layers((2,), (1, 3)) == (1,)
    assert nearest_layers((2,), ()) == ()
