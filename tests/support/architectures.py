"""Tiny random models of many architectures of transformers, and each taken through plan, apply and verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What most configurations understand; those that name a size otherwise have it from `attribute_map`.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "tie_word_embeddings": False,  # a random embedding large enough to tell tokens apart would drown its layers
}
LINEAR, FULL = "linear_attention", "full_attention"
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
MANY_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16} | MAMBA
DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": [LINEAR, LINEAR, LINEAR, FULL],
}  # fmt: skip

DBRX: dict[str, Any] = {
    "d_model": 64, "n_heads": 4, "n_layers": 4, "max_seq_len": 256,
    "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
}  # fmt: skip
GEMMA3N: dict[str, Any] = {
    "num_hidden_layers": 3, "layer_types": ["sliding_attention", FULL, FULL], "num_kv_shared_layers": 1,
    "activation_sparsity_pattern": [0.0] * 3,
    "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 400, "laurel_rank": 8, "altup_num_inputs": 2,
}  # fmt: skip
GEMMA4: dict[str, Any] = {
    "layer_types": ["sliding_attention", FULL] * 2, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 400, "global_head_dim": 16, "sliding_window": 64,
}  # fmt: skip

# Of each architecture, by the `model_type` of its configuration: what it needs besides or instead of SHAPE.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "afmoe": MANY_EXPERTS | {"num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA2 | {"attn_layer_indices": [1, 3]},
    "bart": {"d_model": 64, "decoder_layers": 2, "encoder_layers": 2},
    "bert": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": MANY_EXPERTS | {"logit_scale": 1.0},
    "ctrl": {"dff": 96},
    "cwm": {"bos_token_id": 0},
    "dbrx": DBRX,
    "deepseek_v2": ROUTED | LATENT,
    "deepseek_v3": ROUTED | LATENT,
    "diffllama": {},
    "doge": {},
    "dots1": ROUTED,
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
    "exaone4": {},
    "exaone_moe": MANY_EXPERTS,
    "falcon": {},
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 8},
    "flex_olmo": EXPERTS,
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "gemma3n_text": GEMMA3N,
    "gemma4_text": GEMMA4,
    "glm": {},
    "glm4": {},
    "glm4_moe": ROUTED,
    "glm4_moe_lite": ROUTED | LATENT,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_neox": {},
    "gpt_neox_japanese": {},
    "gpt_oss": EXPERTS,
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": EXPERTS,
    "granitemoehybrid": MAMBA2 | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0},
    "granitemoeshared": EXPERTS | {"shared_intermediate_size": 32},
    "helium": {},
    "hyperclovax": {"logits_scaling": 2.0},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "internlm3": {},
    "jais2": {},
    "jamba": MAMBA | {"num_experts": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 16},
    "lfm2": {"layer_types": ["conv", FULL] * 2, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": MANY_EXPERTS | {"layer_types": ["conv", FULL] * 2, "num_dense_layers": 1},
    "llama": {},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "minimax": EXPERTS | {"layer_types": [FULL, LINEAR] * 2},
    "minicpm3": LATENT,
    "ministral": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": EXPERTS,
    "mpt": {"n_heads": 4, "d_model": 64, "n_layers": 4, "expansion_ratio": 2, "max_seq_len": 256},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "layers_block_type": [LINEAR, "mlp", FULL, "mlp"], "ssm_state_size": 8, "mamba_num_heads": 8,
        "mamba_head_dim": 16, "n_groups": 1, "chunk_size": 16,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": DELTA,
    "olmoe": EXPERTS | {"num_experts": 4},
    "openai-gpt": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": EXPERTS,
    "qwen2": {},
    "qwen2_moe": MANY_EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3": {},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | MANY_EXPERTS | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": MANY_EXPERTS,
    "qwen3_next": DELTA | MANY_EXPERTS | {"shared_expert_intermediate_size": 24},
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 32},
    "rwkv": {"attention_hidden_size": 64, "context_length": 256},
    "seed_oss": {},
    "smollm3": {},
    "solar_open": ROUTED,
    "stablelm": {"partial_rotary_factor": 0.5},
    "starcoder2": {},
    "vaultgemma": {"query_pre_attn_scalar": 16},
    "xglm": {"ffn_dim": 96, "attention_heads": 4},
    "xlstm": {"num_heads": 4, "hidden_size": 128},  # its cache alone rounds the width of keys up to 64
    "youtu": LATENT,
    "zamba": MAMBA | {
        "mamba_dt_rank": 4, "n_mamba_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    },
    "zamba2": MAMBA2 | {
        "layers_block_type": ["mamba", "hybrid"] * 2, "mamba_ngroups": 1, "mamba_headdim": 16, "num_mem_blocks": 1,
    },
}


LEFT_OUT = {"falcon": ("head_dim",), "dbrx": ("head_dim",)}  # settings that these know as something else


# Whose code is for the most part that of another one in the table: the suite leaves them to `outcomes.py --check`.
ALIKE: frozenset[str] = frozenset({
    "apertus", "arcee", "cohere2_moe", "cwm", "deepseek_v2", "diffllama", "dots1", "ernie4_5", "exaone_moe",
    "flex_olmo", "glm4", "glm4_moe_lite", "gpt_bigcode", "gpt_neox_japanese", "granite", "granitemoeshared", "helium",
    "hunyuan_v1_dense", "hunyuan_v1_moe", "internlm3", "jais2", "minicpm3", "ministral", "ministral3", "mistral",
    "nanochat", "olmo", "olmo3", "olmoe", "persimmon", "phimoe", "qwen2", "qwen2_moe", "qwen3_5_moe_text", "seed_oss",
    "smollm3", "solar_open", "vaultgemma", "youtu", "zamba2",
})  # fmt: skip


def save_architecture(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with a random model of this architecture and the tokenizer; its head can tell tokens apart."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from lorasize.models import decoder_layers

    given = {**SHAPE, **ARCHITECTURES[name], "vocab_size": len(tokenizer)}
    changes = {key: value for key, value in given.items() if key not in LEFT_OUT.get(name, ())}
    changes |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CONFIG_MAPPING[name](**changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for module in decoder_layers(model).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.1)
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
