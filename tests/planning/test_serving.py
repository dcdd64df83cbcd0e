"""What a plan says of the engine that will serve it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from support import records as r

from lorasize.planning.serving import fitted, serving
from lorasize.records import Serve


def planned(serve: str, architecture: str, model_type: str, *, in_gguf: bool) -> Any:
    """A plan for that engine, fitted to a model."""
    made = r.plan(serving=serving(r.adapter(), cast(Serve, serve)), warnings=("as before",))
    return fitted(made, architecture, model_type, in_gguf=in_gguf)


@pytest.mark.parametrize("serve", ["peft", "merged", "vllm", "llama.cpp"])
def test_of_a_model_that_both_engines_load_nothing_is_said(serve: str) -> None:
    told = planned(serve, "LlamaForCausalLM", "llama", in_gguf=True)
    assert told.warnings == ("as before",)
    assert told.serving.llama_cpp


@pytest.mark.parametrize("serve", ["peft", "vllm", "merged"])
def test_an_architecture_that_gguf_has_no_names_for_is_warned_of_where_it_matters(serve: str) -> None:
    told = planned("llama.cpp", "NewForCausalLM", "new", in_gguf=False)
    assert "How an adapter of new is written in GGUF is not known here" in told.warnings[1]
    assert not told.serving.llama_cpp
    elsewhere = planned(serve, "NewForCausalLM", "new", in_gguf=False)
    assert elsewhere.warnings == ("as before",)
    assert not elsewhere.serving.llama_cpp


@pytest.mark.parametrize("architecture", ["GPT2LMHeadModel", "FalconForCausalLM", "StableLmForCausalLM"])
def test_a_model_that_vllm_serves_without_lora_is_warned_of_where_it_matters(architecture: str) -> None:
    told = planned("vllm", architecture, "x", in_gguf=True)
    assert f"vLLM serves {architecture} without LoRA" in told.warnings[1]
    assert planned("peft", architecture, "x", in_gguf=True).warnings == ("as before",)


def test_an_infeasible_plan_stays_as_it_is() -> None:
    made = r.infeasible(r.issue())
    assert fitted(made, "GPT2LMHeadModel", "gpt2", in_gguf=False) == made
