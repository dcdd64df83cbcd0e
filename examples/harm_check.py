"""What an adapter does to other text, with stock tools only.

    python harm_check.py BASE_FOLDER ADAPTER_FOLDER [TEXT...] [--tokens N] [--json FILE]

For each text, at most its first 512 tokens, or N: loss without and with the adapter and its growth, nats per token;
KL(without || with), nats per token; the share of positions whose likeliest next token is unchanged. Without TEXT, the
texts that lorasize holds out for this are read. lorasize is not imported.
"""

import argparse
import importlib.util
import json
from pathlib import Path

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy, kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

MOST = 512  # tokens of a text
AT_ONCE = 64  # positions whose distributions are compared at once: a vocabulary may be large
COLUMNS = ("tokens", "before", "after", "growth", "kl", "kept")


def held_out():
    """The texts of the checkout that this file lies in, or else of the lorasize that is installed."""
    places = [Path(__file__).resolve().parent.parent / "lorasize"]
    found = importlib.util.find_spec("lorasize")  # looks for it without importing it
    places += [Path(place) for place in (found.submodule_search_locations or [] if found else [])]
    for place in places:
        if texts := sorted((place / "losses" / "texts" / "report").glob("*.txt")):
            return {path.stem: path for path in texts}
    raise SystemExit("the held-out texts of lorasize were not found: name files to look at")


def compare(before, after, ids):
    """Sums over positions, of logits without and with the adapter: both losses, KL, unchanged likeliest tokens."""
    sums = torch.zeros(4, dtype=torch.float64)
    for begin in range(0, len(ids), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        without, with_it = (logits[part].float().log_softmax(-1) for logits in (before, after))
        kl = kl_div(with_it, without, log_target=True, reduction="none").sum()
        losses = [cross_entropy(one, ids[part], reduction="sum") for one in (without, with_it)]
        kept = (without.argmax(-1) == with_it.argmax(-1)).sum()
        sums += torch.stack([*losses, kl, kept]).double().cpu()
    return sums.tolist()


@torch.no_grad()
def look(model, tokenizer, path, most=MOST):
    """The figures of one text."""
    most = min(most, getattr(model.config, "max_position_embeddings", None) or most)
    text = path.read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=most).input_ids.to(model.device)
    n = ids.shape[1] - 1
    if n < 1:
        raise SystemExit(f"{path}: fewer than two tokens")
    with model.disable_adapter():
        before = model(input_ids=ids, use_cache=False).logits[0, :-1]
    after = model(input_ids=ids, use_cache=False).logits[0, :-1]
    first, second, kl, kept = (total / n for total in compare(before, after, ids[0, 1:]))
    return {"tokens": n, "before": first, "after": second, "growth": second - first, "kl": kl, "kept": kept}


def row(name, found, width):
    """One line of the table."""
    values = [found.get(column, "") for column in COLUMNS]
    return f"{name:{width}}" + "".join(f"{v:10.5f}" if isinstance(v, float) else f"{v:>10}" for v in values)


def show(rows):
    """Print each text, then the means and the worst; both come back. Means are over texts, each counts alike."""
    width = 2 + max(len(name) for name in [*rows, "mean"])
    print(" " * width + "".join(f"{name:>10}" for name in COLUMNS))
    for name, found in rows.items():
        print(row(name, found, width))
    mean = {c: sum(found[c] for found in rows.values()) / len(rows) for c in COLUMNS[1:]}
    worse = {"growth": max, "kl": max, "kept": min}
    places = {c: of(rows, key=lambda name, c=c: rows[name][c]) for c, of in worse.items()}
    worst = {c: {"text": name, "value": rows[name][c]} for c, name in places.items()}
    print(row("mean", mean, width))
    print("worst  " + ", ".join(f"{c} {one['value']:.5f} ({one['text']})" for c, one in worst.items()))
    return {"mean": mean, "worst": worst}


def main():
    """Look at every text, one at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder of the base model")
    parser.add_argument("adapter", help="folder of the adapter")
    parser.add_argument("text", nargs="*", type=Path, help="files to look at")
    parser.add_argument("--tokens", type=int, default=MOST, metavar="N", help="of each text at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    asked = parser.parse_args()
    texts = {str(path): path for path in asked.text} or held_out()
    tokenizer = AutoTokenizer.from_pretrained(asked.base)
    base = AutoModelForCausalLM.from_pretrained(asked.base, dtype=asked.dtype).to(asked.device)
    model = PeftModel.from_pretrained(base, asked.adapter).eval()
    rows = {name: look(model, tokenizer, path, asked.tokens) for name, path in texts.items()}
    summary = show(rows)
    if asked.json:
        whole = {"base": asked.base, "adapter": asked.adapter, "dtype": asked.dtype, "texts": rows, **summary}
        asked.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
