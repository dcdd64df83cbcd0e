"""The rules of thumb, trained as people train: whether they hold a corpus, in which time, and what other text suffers.

    python benchmarks/rules_of_thumb.py [--ranks 1,16] [--corpora 4] [--first-seed 33000] [--rate 2e-4] [--cap 900]
                                        [--model MODEL] [--folder FOLDER] [--out FILE]

The corpora of `harmless.py` of the same seeds. Each is trained by transformers, PEFT and AdamW alone: LoRA on all
linear layers, alpha twice the rank, no dropout, a constant rate, all passages in a batch (eight at most), until every
target token is above ½, which is looked at after each epoch, or for `--cap` seconds. lorasize reads the corpus and
nothing else. What comes back and what other text suffers is told as there, by examples/recall_check.py and
examples/harm_check.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # both as the command line sets them
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harmless import CORPORA, EXAMPLES, TOKENS, run
from support.corpora import write_corpus

ROWS = 8  # passages in a batch


def train(folder: str, corpus: Path, out: Path, rank: int, rate: float, cap: float) -> dict[str, Any]:
    """Train on the corpus until it is held or the seconds are over, and save the adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorasize.artifacts.adapter_folder import write_addresses
    from lorasize.corpus import read_corpus
    from lorasize.corpus.tokens import encode_corpus
    from lorasize.records import Reading

    tokenizer = AutoTokenizer.from_pretrained(folder)
    passages, _ = read_corpus([corpus])
    encoded = encode_corpus(passages, tokenizer, Reading(), 8192, len(tokenizer))
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    batches = [_batch(encoded[k : k + ROWS]) for k in range(0, len(encoded), ROWS)]
    started, steps, left = time.perf_counter(), 0, len(encoded)
    while left and time.perf_counter() - started < cap:
        left = 0
        for ids, mask, labels in batches:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
            left += int((losses >= 0.6931472).sum())
            (losses.sum() / (labels[:, 1:] != -100).sum()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    seconds = time.perf_counter() - started
    model.save_pretrained(str(out))
    write_addresses([one.address() for one in encoded], out)
    found = {"rank": rank, "parameters": sum(p.numel() for p in trained), "steps": steps, "seconds": round(seconds, 1)}
    return found | {"tokens": sum(p.n_tokens for p in encoded), "left": left}


def _batch(encoded: Any) -> tuple[Any, Any, Any]:
    """Padded ids, their mask, and labels, −100 where nothing is to be learned."""
    import torch

    rows = [torch.tensor(p.prompt_ids + p.target_ids) for p in encoded]
    labels = [torch.tensor((-100,) * len(p.prompt_ids) + p.target_ids) for p in encoded]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
    return pad(rows, batch_first=True), mask, pad(labels, batch_first=True, padding_value=-100)


def main() -> None:
    """Train what is missing, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    parser.add_argument("--ranks", default="1,16")
    parser.add_argument("--corpora", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=33000)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--cap", type=float, default=900.0, help="seconds of training at most")
    parser.add_argument("--folder", type=Path, default=Path("rules-of-thumb"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()

    from lorasize import models

    opened, rows = models.open(asked.model, None), []
    for k, (kind, n_tokens) in enumerate(CORPORA[: asked.corpora]):
        for rank in map(int, asked.ranks.split(",")):
            name = f"{kind}-{n_tokens}-{asked.first_seed + k}"
            place = asked.folder / name / f"rank-{rank}-{asked.rate:g}"
            kept = place / "found.json"
            if not kept.is_file():
                place.mkdir(parents=True, exist_ok=True)
                corpus = write_corpus(place, kind, n_tokens, asked.first_seed + k, opened.tokenizer)
                found = train(str(opened.path), corpus, place / "adapter", rank, asked.rate, asked.cap)
                recalled = run(EXAMPLES / "recall_check.py", opened.path, place / "adapter").returncode == 0
                told = place / "harm.json"
                run(EXAMPLES / "harm_check.py", opened.path, place / "adapter", "--tokens", TOKENS, "--json", told)
                harm = json.loads(told.read_text(encoding="utf-8"))
                found |= {"recalled": recalled, "mean": harm["mean"], "worst": harm["worst"]}
                kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            found = json.loads(kept.read_text(encoding="utf-8"))
            rows.append({"corpus": name, "rate": asked.rate, **found})
            mean = found["mean"]
            print(
                f"{name:18} rank {rank:2} on all linear layers, {found['parameters']:>9,} parameters: "
                f"{'recalled' if found['recalled'] else 'LOST':8} {found['left']:3} tokens left "
                f"after {found['steps']:4} steps, {found['seconds']:4.0f} s; "
                f"growth {mean['growth']:+.3f}, KL {mean['kl']:.3f}, "
                f"likeliest token kept {mean['kept']:.1%}",
                flush=True,
            )
    if asked.out is not None:
        whole = {"model": asked.model, "first_seed": asked.first_seed, "cap": asked.cap, "runs": rows}
        asked.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
