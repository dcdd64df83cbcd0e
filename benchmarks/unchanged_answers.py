"""How many answers to general questions an adapter leaves exactly as they were, with stock tools only.

    python benchmarks/unchanged_answers.py BASE_FOLDER ADAPTER_FOLDER [--json FILE]

Greedy answers without and with the adapter, on the questions of support/general_questions.py: the likeliest next token
of 100 sentences without their last word, 60 small sums (four tokens) and 100 openings of texts (16 tokens). An answer
ends at the stop token. The batches are the same both times, so only the adapter differs. Printed: the share of answers
exactly unchanged; the share of tokens before the first difference; how many sentences and sums are answered right.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import PeftModel
from support.general_questions import CLOZE, OPENINGS, SUMS
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

BATCH = 20
Answers = list[list[int]]


def open_model(base: str, adapter: str, device: str, dtype: str) -> tuple[Any, Any]:
    """The tokenizer, which pads on the left, and the model with its adapter."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).to(device)
    model = PeftModel.from_pretrained(plain, adapter).eval()
    # A base model may ship sampling or a repetition penalty, which generate() merges into any config it is given.
    model.generation_config = model.get_base_model().generation_config = GenerationConfig()
    return tokenizer, model


def answers(tokenizer: Any, model: Any, prompts: Sequence[str], n_tokens: int) -> Answers:
    """Greedy answers of at most so many tokens; what follows the stop token is cut off."""
    stop = tokenizer.eos_token_id
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=n_tokens, eos_token_id=stop, pad_token_id=tokenizer.pad_token_id
    )
    by_length = sorted(range(len(prompts)), key=lambda k: len(prompts[k]))  # little padding, few wasted positions
    found: Answers = [[] for _ in prompts]
    for begin in range(0, len(prompts), BATCH):
        places = by_length[begin : begin + BATCH]
        batch = tokenizer([prompts[k] for k in places], padding=True, return_tensors="pt").to(model.device)
        new = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=greedy
        )[:, batch.input_ids.shape[1] :].tolist()  # fmt: skip
        for k, ids in zip(places, new, strict=True):
            found[k] = ids[: ids.index(stop) + 1] if stop in ids else ids
    return found


def both(tokenizer: Any, model: Any, prompts: Sequence[str], n_tokens: int) -> tuple[Answers, Answers]:
    """Answers without and with the adapter."""
    with model.disable_adapter():
        before = answers(tokenizer, model, prompts, n_tokens)
    return before, answers(tokenizer, model, prompts, n_tokens)


def alike(before: list[int], after: list[int]) -> float:
    """Share of an answer's tokens that stand before the first difference."""
    n = max(len(before), len(after))
    return next((k for k in range(n) if before[k : k + 1] != after[k : k + 1]), n) / n


def right(tokenizer: Any, found: Answers, wanted: Sequence[str]) -> int:
    """How many answers begin with the word wanted. Of an answer of one token, a beginning of the word is enough."""
    texts = [tokenizer.decode(ids, skip_special_tokens=True).split() or [""] for ids in found]
    first = [words[0].rstrip(".,;:!") for words in texts]
    pairs = zip(first, found, wanted, strict=True)
    return sum(w == word or (len(ids) == 1 and len(w) > 1 and word.startswith(w)) for w, ids, word in pairs)


def part(tokenizer: Any, model: Any, items: Sequence[Sequence[str]], n_tokens: int) -> dict[str, Any]:
    """What became of one kind of question. Items are prompts, some with what is right."""
    prompts = [item[0] for item in items]
    before, after = both(tokenizer, model, prompts, n_tokens)
    pairs = list(zip(before, after, strict=True))
    row: dict[str, Any] = {
        "n": len(items),
        "unchanged": sum(one == other for one, other in pairs) / len(items),
        "tokens_alike": sum(alike(one, other) for one, other in pairs) / len(items),
    }
    if len(items[0]) > 1:
        wanted = [item[1] for item in items]
        row |= {"right_before": right(tokenizer, before, wanted), "right_after": right(tokenizer, after, wanted)}
    changed = [(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True) if pair[0] != pair[1]]
    told = ({"prompt": p, "before": tokenizer.decode(a), "after": tokenizer.decode(b)} for p, a, b in changed)
    return row | {"changed": list(told)}


def show(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'':10}{'items':>6}{'unchanged':>11}{'tokens alike':>14}{'right before':>14}{'right after':>13}")
    for name, row in rows.items():
        told = [str(row.get(key, "")) for key in ("right_before", "right_after")]
        alike_share = f"{row['tokens_alike']:.1%}"
        print(f"{name:10}{row['n']:6}{row['unchanged']:11.1%}{alike_share:>14}{told[0]:>14}{told[1]:>13}")


@torch.no_grad()
def main() -> None:
    """Ask everything twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, and each changed answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    tokenizer, model = open_model(chosen.base, chosen.adapter, chosen.device, chosen.dtype)
    kinds = {"sentences": (CLOZE, 1), "sums": (SUMS, 4), "openings": ([(text,) for text in OPENINGS], 16)}
    rows = {name: part(tokenizer, model, items, n) for name, (items, n) in kinds.items()}
    show(rows)
    if chosen.json:
        whole = {"base": chosen.base, "adapter": chosen.adapter, "dtype": chosen.dtype, **rows}
        chosen.json.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
