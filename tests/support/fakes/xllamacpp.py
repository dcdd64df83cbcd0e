"""Stands for the package of this name in the process that llama.cpp decodes in: says what `told` tells it, or fails."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from told import TOLD, answer, fail

if TOLD.get("fault") == "absent":
    raise ImportError("no module named xllamacpp")

__version__ = "1.2.3"


def CommonParams() -> SimpleNamespace:
    """Settings, which a Server looks at."""
    threads = {name: SimpleNamespace(n_threads=-1) for name in ("cpuparams", "cpuparams_batch")}
    return SimpleNamespace(model=SimpleNamespace(path=""), lora_adapters=[], **threads)


def CommonAdapterLoraInfo(path: str, scale: float) -> tuple[str, float]:
    """An adapter's file and its scale."""
    return path, scale


class Server:
    """Answers as it was told."""

    def __init__(self, params: Any) -> None:
        print("llama.cpp prints where it likes")
        ((adapter, scale),) = params.lora_adapters
        assert scale == 1.0
        assert Path(adapter).read_bytes().startswith(b"GGUF")
        assert params.n_ctx % 256 == 0
        if TOLD.get("fault") == "load":
            print("0.00.1.2 I srv init: loading", file=sys.stderr)
            print("0.00.3.4 E llama_adapter_lora_init: model arch and LoRA arch mismatch", file=sys.stderr)
            raise RuntimeError("Failed to init server, please check the input params.")
        self._n = 0

    def handle_completions(self, asked: dict[str, Any]) -> Any:
        """The answer to a prompt."""
        plain = {"temperature": 0, "cache_prompt": False, "repeat_penalty": 1.0}
        assert plain.items() <= asked.items()
        self._n += 1
        fail(self._n, "GGML_ASSERT(n > 0) failed")
        if self._n == TOLD.get("at"):
            return {"error": {"code": 400, "message": "request exceeds the available context size"}}
        return answer(asked["prompt"])
