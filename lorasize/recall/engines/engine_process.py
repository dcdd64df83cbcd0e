"""The process in which an engine decodes: a job on standard input, one answer a line on standard output.

Run as a file, with the engine's name, by a Python that need not have lorasize: it imports nothing of it but the engine,
xllamacpp for llama.cpp, vllm for vLLM.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

# vLLM: no report of what is run to its makers; one process, so that an error is told and not only that there was one.
_VLLM = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
_VLLM_UNLESS_SET = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # GiB; one passage needs no more


def main() -> None:
    """Read a job, one line of JSON; write first what runs here, then what came after each prompt."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print where they like
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if sys.path and os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)):
        sys.path.pop(0)  # what lies beside this file is no package of that Python
    for answer in {"llama.cpp": _llama_cpp, "vLLM": _vllm}[sys.argv[1]](job):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # what engines do at their end takes time and may fail: every answer is out


def _llama_cpp(job: dict[str, Any]) -> Iterator[Any]:
    try:
        import xllamacpp
    except ImportError as error:
        yield {"missing": str(error)}
        return
    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx, params.warmup = job["n_context"], False
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():  # as torch has it; more than there are idle wait
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["adapter"], 1.0)]
    server = xllamacpp.Server(params)
    yield {"version": str(xllamacpp.__version__)}
    for prompt, n_tokens in zip(job["prompts"], job["n_tokens"], strict=True):
        asked = {"prompt": prompt, "n_predict": n_tokens, "n_probs": job["n_probs"], "temperature": 0}
        yield server.handle_completions({**asked, "cache_prompt": False, "repeat_penalty": 1.0})


def _vllm(job: dict[str, Any]) -> Iterator[Any]:
    os.environ.update(_VLLM)
    for name, value in _VLLM_UNLESS_SET.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
    except Exception as error:  # a library of it that was built for another machine raises what it likes
        yield {"missing": f"{type(error).__name__}: {error}"}
        return
    try:
        llm = vllm.LLM(
            model=job["model"], dtype=job["dtype"], max_model_len=job["n_context"], max_num_seqs=1,
            enable_lora=True, max_lora_rank=job["max_lora_rank"], enforce_eager=True, enable_prefix_caching=False,
            generation_config="vllm", load_format="safetensors",
        )  # fmt: skip
        adapter = LoRARequest("adapter", 1, job["adapter"])
        llm.llm_engine.add_lora(adapter)  # else it is read with the first prompt
        dtype = str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    except Exception as error:
        yield {"refused": f"{type(error).__name__}: {error}"}
        return
    yield {"version": str(vllm.__version__), "device": str(current_platform.device_type), "dtype": dtype}
    for prompt, n_tokens in zip(job["prompts"], job["n_tokens"], strict=True):
        how = vllm.SamplingParams(temperature=0, max_tokens=n_tokens, logprobs=job["n_probs"])
        try:
            (found,) = llm.generate([{"prompt_token_ids": prompt}], how, lora_request=adapter, use_tqdm=False)
        except Exception as error:
            yield {"error": f"{type(error).__name__}: {error}"}
            return
        yield _completion(found.outputs[0])


def _completion(output: Any) -> dict[str, Any]:
    """What vLLM decoded, in the form in which its server tells it."""
    ids = [int(one) for one in output.token_ids]
    told = [{int(one): float(entry.logprob) for one, entry in place.items()} for place in output.logprobs or ()]
    chosen = [place.get(one) for one, place in zip(ids, told, strict=False)]
    named = [{f"token_id:{one}": value for one, value in place.items()} for place in told]
    choice = {"text": output.text, "token_ids": ids, "finish_reason": output.finish_reason}
    return {"choices": [{**choice, "logprobs": {"token_logprobs": chosen, "top_logprobs": named}}]}


def _end_with_parent() -> None:
    """End, with all that was started here, when the pipe does: then whoever asked is gone, even by a kill."""
    while os.read(0, 1):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
