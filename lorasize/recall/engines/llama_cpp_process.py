"""The process in which llama.cpp decodes: a job on standard input, one answer a line on standard output.

Run as a file by a Python that need not have lorasize, so it imports nothing of it but xllamacpp: llama.cpp.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any


def main() -> None:
    """Read a job, one line of JSON; write first what runs here, then what came after each prompt."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # llama.cpp prints where it likes

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
        sys.path.pop(0)  # what lies beside this file is no package of that Python
    try:
        import xllamacpp
    except ImportError as error:
        answer({"missing": str(error)})
        return
    server = _served(xllamacpp, job)
    answer({"version": str(xllamacpp.__version__)})
    for prompt, n_tokens in zip(job["prompts"], job["n_tokens"], strict=True):
        asked = {"prompt": prompt, "n_predict": n_tokens, "n_probs": job["n_probs"], "temperature": 0}
        answer(server.handle_completions({**asked, "cache_prompt": False, "repeat_penalty": 1.0}))
    os._exit(0)  # what llama.cpp does at its end takes time and may fail: every answer is out


def _served(xllamacpp: Any, job: dict[str, Any]) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx, params.warmup = job["n_context"], False
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # as torch has it; more than there are idle wait
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["adapter"], 1.0)]
    return xllamacpp.Server(params)


def _end_with_parent() -> None:
    """End when the pipe does: then whoever asked is gone, even by a kill."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
