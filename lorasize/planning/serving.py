"""What an inference engine must be told, and the rules of thumb that a plan is shown beside."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorasize.records import Activation, AdapterSpec, Plan, RulesOfThumb, Serve, Serving

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values vLLM accepts as max_lora_rank
VLLM_DEFAULT_RANK = 16
# Models of transformers that vLLM 0.32 itself runs, without LoRA ("does not support LoRA yet"); asked of its registry.
VLLM_WITHOUT_LORA = frozenset({
    "BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM", "DeepseekV4ForCausalLM", "FalconForCausalLM",
    "FalconMambaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "Gemma3nForCausalLM", "KimiLinearForCausalLM",
    "Mamba2ForCausalLM", "MambaForCausalLM", "StableLmForCausalLM", "Zamba2ForCausalLM",
})  # fmt: skip
FLAT_RANK = 16


def rules_of_thumb(linear_parameters_per_rank: int, n_tokens: int) -> RulesOfThumb:
    """What people use today on all linear layers: the rank at which parameters ≥ target tokens, and a flat 16.

    Source: Tinker's advice on LoRA (parameters ≥ target tokens); 16 is the usual recipe and vLLM's default
    max_lora_rank, while TRL's table "LoRA Without Regret" says 256.
    """
    return RulesOfThumb(
        parameters_ge_tokens_rank=max(1, math.ceil(n_tokens / linear_parameters_per_rank)), flat_rank=FLAT_RANK
    )


def vllm_rank(rank: int) -> int | None:
    """The least max_lora_rank with which vLLM takes an adapter of this rank; None where it takes none."""
    return next((r for r in VLLM_RANKS if r >= rank), None)


def serving(adapter: AdapterSpec, serve: Serve) -> Serving:
    """What the inference engine must be told. vLLM takes only certain values of max_lora_rank, at most 512."""
    bucket = vllm_rank(adapter.rank)
    notes = {
        "peft": "PEFT loads the folder as it is.",
        "vllm": f"Start vLLM with max_lora_rank {bucket} (its default is {VLLM_DEFAULT_RANK}), then let it verify "
        "recall in the dtype that it serves in.",
        "llama.cpp": "Export the adapter as GGUF, then let llama.cpp verify recall with the base file that it serves.",
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


def fitted(plan: Plan, architecture: str, model_type: str, *, in_gguf: bool) -> Plan:
    """The plan with what its engine cannot load of this model.

    Args:
        plan: The plan.
        architecture: The model's class in transformers.
        model_type: What its config calls it.
        in_gguf: Whether it is known here how an adapter of it is written in GGUF.
    """
    if plan.serving is None:
        return plan
    serving, warnings = plan.serving.model_copy(update={"llama_cpp": in_gguf}), list(plan.warnings)
    if serving.serve == "llama.cpp" and not in_gguf:
        warnings.append(
            f"How an adapter of {model_type} is written in GGUF is not known here: it cannot be exported for "
            "llama.cpp. Merge it, and convert the merged folder."
        )
    if serving.serve == "vllm" and architecture in VLLM_WITHOUT_LORA:
        warnings.append(
            f"vLLM serves {architecture} without LoRA (as of 0.32) and refuses the adapter: merge it, and serve the "
            "merged folder."
        )
    return plan.model_copy(update={"serving": serving, "warnings": tuple(warnings)})


# What engines do with an activated adapter, all of them run: docs/guide/activated.md
_ACTIVATED = {
    "peft": "PEFT's generate() lets the adapter act after {text!r} alone; a loop of one's own over forward() must pass "
    "alora_offsets.",
    "vllm": "vLLM 0.32 refuses an adapter that acts after certain tokens alone; a version that takes it drops the "
    "tokens, and the adapter acts on every request that names it.",
    "llama.cpp": "llama-server lets the adapter act after {text!r} alone; in other tools of llama.cpp we found no code "
    "for that: always on (read in their code, not run).",
}
_NOTED: dict[Serve, tuple[Serve, ...]] = {"peft": ("peft", "llama.cpp", "vllm")}


def with_activation(plan: Plan, activation: Activation, prompts: Sequence[Sequence[int]]) -> Plan:
    """The plan with an activated adapter: what its engine does with that, and a warning where it does not honour it."""
    if plan.serving is None:
        return plan.model_copy(update={"activation": activation})
    serve, warnings = plan.serving.serve, list(plan.warnings)
    if serve == "vllm":
        warnings.append(
            f"vLLM does not honour the activation after {activation.text!r}: 0.32 refuses the adapter. A version that "
            "takes it lets it act, and harm, in every request that names it, before the text as well."
        )
    if serve == "llama.cpp":
        warnings += _found_otherwise(activation, prompts)
    notes = (_ACTIVATED[engine].format(text=activation.text) for engine in _NOTED.get(serve, (serve,)))
    serving = plan.serving.model_copy(update={"notes": (*plan.serving.notes, *notes)})
    return plan.model_copy(update={"activation": activation, "serving": serving, "warnings": tuple(warnings)})


def _found_otherwise(activation: Activation, prompts: Sequence[Sequence[int]]) -> list[str]:
    """Where llama-server would let the adapter act from another token on than PEFT."""
    begins = [activation.begins(prompt) for prompt in prompts]
    told = []
    if missed := sum(_found_by_llama_server(p, activation) != k for p, k in zip(prompts, begins, strict=True)):
        told.append(
            f"llama-server looks for {activation.text!r} in another way than PEFT and would not find it, or find it "
            f"elsewhere, in {missed} of {len(prompts)} prompts: name another text."
        )
    if any(begins):
        told.append(
            f"Where {activation.text!r} does not begin the prompt, llama-server lets the adapter act from the token "
            "before it on, PEFT does not: recall may suffer there. Name a text that begins the prompts."
        )
    return told


def _found_by_llama_server(prompt: Sequence[int], activation: Activation) -> int | None:
    """Where it finds the tokens: backwards, and after a token that does not match from the next one on."""
    tokens = activation.alora_invocation_tokens
    left = len(tokens)
    for place in range(len(prompt) - 1, -1, -1):
        left = left - 1 if prompt[place] == tokens[left - 1] else len(tokens)
        if left == 0:
            return place
    return None
