"""What an inference engine must be told, and the rules of thumb that a plan is shown beside."""

from __future__ import annotations

import math

from lorasize.records import AdapterSpec, RulesOfThumb, Serve, Serving

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM accepts as max_lora_rank
VLLM_DEFAULT_RANK = 16
FLAT_RANK = 16


def rules_of_thumb(linear_parameters_per_rank: int, n_tokens: int) -> RulesOfThumb:
    """What people use today on all linear layers: the rank at which parameters ≥ target tokens, and a flat 16.

    Source: Tinker's advice on LoRA (parameters ≥ target tokens); 16 is the usual recipe and vLLM's default
    max_lora_rank, while TRL's table "LoRA Without Regret" says 256.
    """
    return RulesOfThumb(
        parameters_ge_tokens_rank=max(1, math.ceil(n_tokens / linear_parameters_per_rank)), flat_rank=FLAT_RANK
    )


def serving(adapter: AdapterSpec, serve: Serve) -> Serving:
    """What the inference engine must be told. vLLM takes only certain values of max_lora_rank, at most 512."""
    bucket = next((r for r in VLLM_RANKS if r >= adapter.rank), None)
    notes = {
        "peft": "PEFT loads the folder as it is.",
        "vllm": f"Start vLLM with max_lora_rank {bucket} (its default is {VLLM_DEFAULT_RANK}).",
        "llama.cpp": "Convert with llama.cpp's convert_lora_to_gguf.py, then verify recall on the converted file.",
        "merged": "Merging rounds the weights to the base's dtype: apply decodes the merged model.",
    }
    if serve == "vllm" and bucket is None:
        return Serving(
            serve=serve,
            vllm_max_lora_rank=None,
            llama_cpp=True,
            notes=(f"vLLM serves ranks up to {VLLM_RANKS[-1]}: merge the adapter or spread it over more layers.",),
        )
    return Serving(serve=serve, vllm_max_lora_rank=bucket, llama_cpp=True, notes=(notes[serve],))
