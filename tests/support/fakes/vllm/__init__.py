"""Stands for the package of this name in the process that vLLM decodes in: says what `told` tells it, or fails.

It is told ids and whether they stop; ln p are those that `support.engines` gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from told import TOLD, answer, fail

if TOLD.get("fault") == "absent":
    raise ImportError("No module named 'vllm'")

__version__ = "9.8.7"


class SamplingParams(SimpleNamespace):
    """How to decode."""


class LLM:
    """Answers as it was told."""

    def __init__(self, **how: Any) -> None:
        print("vLLM prints where it likes")
        assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
        assert how["enable_lora"]
        assert Path(how["model"], "config.json").is_file()
        assert (how["generation_config"], how["load_format"]) == ("vllm", "safetensors")
        if "asked" in TOLD:
            assert {name: how[name] for name in TOLD["asked"]} == TOLD["asked"]
        if TOLD.get("fault") == "base":
            raise ValueError("1 validation error for ModelConfig\n  Value error, no such architecture")
        dtype = SimpleNamespace(dtype=f"torch.{how['dtype']}")
        self.llm_engine = SimpleNamespace(add_lora=_add, vllm_config=SimpleNamespace(model_config=dtype))
        self._n = 0

    def generate(self, prompts: list[Any], how: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        """What comes after a prompt."""
        assert how.temperature == 0
        assert not use_tqdm
        self._n += 1
        fail(self._n, "Fatal Python error: Segmentation fault")
        if self._n == TOLD.get("at"):
            raise ValueError("the prompt is longer than\nthe maximum model length")
        choice = answer(prompts[0]["prompt_token_ids"])["choices"][0]
        entries = choice["logprobs"]["content"][: how.max_tokens]
        ids = [entry["id"] for entry in entries]
        tops = [{top["id"]: SimpleNamespace(logprob=top["logprob"]) for top in e["top_logprobs"]} for e in entries]
        found = SimpleNamespace(text="x", token_ids=ids, logprobs=tops, finish_reason=choice["finish_reason"])
        return [SimpleNamespace(outputs=[found])]


def _add(adapter: Any) -> bool:
    assert Path(adapter.path, "adapter_config.json").is_file()
    if TOLD.get("fault") == "load":
        raise ValueError("vLLM does not yet support DoRA.")
    return True
