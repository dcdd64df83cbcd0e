"""Stands for the package of this name in the process that llama.cpp decodes in: says what a file tells it, or fails.

`FAKE_ENGINE` names a JSON file: `answers`, by the prompt's ids; `fault`, what goes wrong, at the prompt numbered `at`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

with open(os.environ["FAKE_ENGINE"], encoding="utf-8") as stream:
    TOLD = json.load(stream)
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

    def handle_completions(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to a prompt."""
        plain = {"temperature": 0, "cache_prompt": False, "repeat_penalty": 1.0}
        assert plain.items() <= asked.items()
        self._n += 1
        if self._n == TOLD.get("at"):
            _fail(TOLD["fault"])
            if TOLD["fault"] == "refuses":
                return {"error": {"code": 400, "message": "request exceeds the available context size"}}
        answer: dict[str, Any] = TOLD["answers"][json.dumps(asked["prompt"])]
        return answer


def _fail(fault: str) -> None:
    if fault == "dies":
        print("GGML_ASSERT(n > 0) failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        Path(os.environ["FAKE_ENGINE"]).with_name("pids").write_text(f"{os.getpid()} {child.pid}", "utf-8")
        time.sleep(3600)
