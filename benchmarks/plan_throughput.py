"""Throughput of `plan` against the model's raw forward pass, on 400 passages and 20,000 target tokens, in one process.

    python benchmarks/plan_throughput.py [--passages 400] [--tokens 50] [--json]

Raw: `model(input_ids)` without a cache on the same ids in batches of about 1,024 positions alike in length, logits
computed at every position as the plain model does, nothing read from them. Ours: the whole verb, reading, tokenising,
linting, loading the model, measuring and planning, and its measuring pass alone. Ratios are raw seconds ÷ ours.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import torch

from lorasize import models
from lorasize.losses.base import base_losses
from lorasize.models.devices import peak_memory
from lorasize.probing import invented_sentences
from lorasize.verbs.plan import plan

POSITIONS = 1024  # in a raw batch: logits of more would not fit beside the model in 6 GiB


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=50, help="of each passage, about")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.jsonl"
        rows = [
            {"prompt": f"Report {k}:", "completion": " " + " ".join(invented_sentences(k, chosen.tokens // 20))}
            for k in range(chosen.passages)
        ]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        base = models.load(models.BUILTIN)
        started = time.perf_counter()
        sized = plan([path])
        whole = time.perf_counter() - started
    started = time.perf_counter()
    base_losses(base, sized.encoded)
    measuring = time.perf_counter() - started
    rows_of_ids = sorted((p.prompt_ids + p.target_ids[:-1] for p in sized.encoded), key=len)
    started = time.perf_counter()
    with torch.no_grad():
        begin = 0
        while begin < len(rows_of_ids):
            size = max(1, POSITIONS // len(rows_of_ids[begin]))
            batch = rows_of_ids[begin : begin + size]
            begin += size
            ids = torch.zeros((len(batch), len(batch[-1])), dtype=torch.long)
            for row, one in enumerate(batch):
                ids[row, : len(one)] = torch.tensor(one)
            base.model(input_ids=ids, use_cache=False)
    raw = time.perf_counter() - started
    n_tokens = sum(p.n_tokens for p in sized.encoded)
    figures = {
        "n_tokens": n_tokens,
        "raw_seconds": raw,
        "plan_seconds": whole,
        "measuring_seconds": measuring,
        "ratio": raw / whole,
        "ratio_measuring": raw / measuring,
        "peak_memory_bytes": peak_memory(base.device),
    }
    if chosen.json:
        print(json.dumps(figures))
    else:
        print(
            f"{n_tokens} tokens: raw forward {raw:.1f} s, plan {whole:.1f} s ({raw / whole:.2f} of its throughput), "
            f"measuring pass alone {measuring:.1f} s ({raw / measuring:.2f}), "
            f"peak {peak_memory(base.device) / 2**30:.1f} GiB"
        )


if __name__ == "__main__":
    main()
