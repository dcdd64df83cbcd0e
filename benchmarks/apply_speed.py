"""Time to "every target token above ½": lorasize beside HF Trainer, TRL's SFTTrainer and the paper's recipe.

    pip install trl
    python benchmarks/apply_speed.py [--corpus page records passages] [--runs 3] [--cap 5.2] [--json] [--journal FILE]

Same builtin model in float32, same token ids, same adapter (up_proj of layer 24), as many passages in a batch for all.
The peers get the better of what they allow: AdamW at a constant rate, the best of three (the first to finish within
the time lorasize took, else the one with the fewest tokens left by then), no dropout, no weight decay. They are checked
after each epoch, by a forward pass that computes logits of target positions only; ratios count that time, and are given
without it too. The paper: its recipe (MemFT-OT, AdamW at 1e-2, linear decay over 200 epochs; without its dropout) on
lorasize's own fast path, so that the recipe is compared and not the code around it. A peer stops at `--cap` times
lorasize's median, the paper's recipe at three times; its ratio is then a lower bound, marked "≥".

Every run is a fresh process with one core to itself, and as many run as there are cores (a run alone and two side by
side took the same time, docs/log/speed.md#one-core-each). Finished ones are kept in the journal.

The last part prints what lorasize pays for a growing corpus: seconds of a step on everything, by tokens (`--curve`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.cores import Cores, pin

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

RANKS = {"page": 8, "records": 8, "passages": 16}
ROWS = {"page": 1, "records": 24, "passages": 5}  # passages in a batch, about 512 positions
LAYER = 24
RATES = (1e-2, 3e-2, 3e-3)
PAPER_EPOCHS = 200
NAMES = {"trainer": "HF Trainer + PEFT", "trl": "TRL SFTTrainer", "paper": "the paper's recipe, our fast path"}


def encoded_corpus(base: Any, name: str, seed: int, n_passages: int = 20) -> list[Any]:
    """The passages of a corpus as token ids, made from a seed."""
    from lorasize.corpus.tokens import EncodedPassage, stop_token_id
    from lorasize.probing import invented_sentences
    from lorasize.records import Passage

    def ids(text: str) -> tuple[int, ...]:
        return tuple(base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    draw = random.Random(seed)
    stop = (stop_token_id(base.tokenizer),)
    if name == "records":
        numbers = random.Random(seed).sample(range(100, 1000), 60)
        pairs = [(f"Locker {k}:", f" {draw.randrange(10**5, 10**6)}") for k in numbers]
        texts = [(ids(prompt), (*ids(target), *stop)) for prompt, target in pairs]
    else:
        n, size = (1, 500) if name == "page" else (n_passages, 100)
        prose = [ids(" ".join(invented_sentences(1000 * seed + k, size // 3))) for k in range(n)]
        texts = [(ids(f"[page {k}]\n"), (*text[: size - 1], *stop)) for k, text in enumerate(prose)]
    nothing = Passage(id="x", file="x", line=1, prompt="", target="x")
    return [EncodedPassage(nothing, prompt, target) for prompt, target in texts]


def run_one(name: str, method: str, rate: float, seed: int, cap: float) -> dict[str, Any]:
    """Train until every token is above ½, or for `cap` seconds."""
    from lorasize import models
    from lorasize.models import adapters
    from lorasize.models.devices import peak_memory
    from lorasize.records import Site

    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    encoded = encoded_corpus(base, name, seed)
    site = Site(target_modules=("up_proj",), layers_to_transform=(LAYER,))
    adapted = adapters.attach(base.model, site, RANKS[name], seed)
    run = _peer if method in ("trainer", "trl") else _lorasize
    found = run(adapted, encoded, name, method, rate, seed, cap)
    n_tokens = sum(p.n_tokens for p in encoded)
    found |= {"corpus": name, "method": method, "rate": rate, "seed": seed, "cap": cap, "n_tokens": n_tokens}
    return found | {"peak_memory_bytes": peak_memory(base.device)}


def _lorasize(
    adapted: Any, encoded: list[Any], name: str, method: str, rate: float, seed: int, cap: float
) -> dict[str, Any]:
    import torch

    from lorasize.training import Trainer, TrainingOptions

    started = time.perf_counter()
    paper = method == "paper"
    options = TrainingOptions(method="memft-ot" if paper else "memft", margin=0.0, seed=seed)
    recipe: dict[str, Any] = {}
    if paper:
        recipe["optimizer"] = lambda trained: torch.optim.AdamW(trained, lr=rate, weight_decay=0.01)
        recipe["rate"] = lambda step, stubborn: rate * max(0.0, 1 - step / (PAPER_EPOCHS * trainer.steps_per_epoch))
    trainer = Trainer(adapted, encoded, options, **recipe)
    for report in trainer.steps():  # noqa: B007
        if time.perf_counter() - started > cap:
            break
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "check_seconds": 0.0, "steps": report.step, "n_left": report.n_stubborn}


PEER: dict[str, Any] = {
    "num_train_epochs": 2000,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def _collate(picked: Sequence[dict[str, Any]]) -> dict[str, Any]:
    import torch

    def pad(key: str, value: int) -> Any:
        lists = [torch.tensor(example[key]) for example in picked]
        return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=value)

    ids, wanted = pad("input_ids", 0), pad("labels", -100)
    return {"input_ids": ids, "attention_mask": (pad("labels", -7) != -7).long(), "labels": wanted}


def _peer(
    adapted: Any, encoded: list[Any], name: str, method: str, rate: float, seed: int, cap: float
) -> dict[str, Any]:
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    from lorasize.losses.head import head_of
    from lorasize.losses.token_losses import token_losses
    from lorasize.models import adapters

    rows = [p.prompt_ids + p.target_ids for p in encoded]
    labels = [(-100,) * len(p.prompt_ids) + p.target_ids for p in encoded]
    examples = [{"input_ids": list(r), "labels": list(t)} for r, t in zip(rows, labels, strict=True)]
    whole = [_collate(examples[k : k + ROWS[name]]) for k in range(0, len(examples), ROWS[name])]
    base, state = adapters.base_of(adapted), {"checks": 0.0, "left": len(rows)}
    head = head_of(base)

    @torch.no_grad()
    def left() -> int:
        adapted.eval()
        count = 0
        for batch in whole:
            hidden = base.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            where = batch["labels"][:, 1:] != -100
            losses = token_losses(head, hidden[:, :-1][where], batch["labels"][:, 1:][where])
            count += int((losses.loss >= 0.6931472).sum())
        return count

    class Check(TrainerCallback):
        def on_epoch_end(self, args: Any, state_: Any, control: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            state["left"] = left()
            state["checks"] += time.perf_counter() - begun
            late = time.perf_counter() - started > cap
            control.should_training_stop = state["left"] == 0 or late
            return control

    common = {**PEER, "output_dir": tempfile.mkdtemp(), "learning_rate": rate, "seed": seed}
    common["per_device_train_batch_size"] = ROWS[name]
    if method == "trl":
        from datasets import Dataset

        config = SFTConfig(**common, max_length=None, gradient_checkpointing=False, bf16=False)
        trainer: Any = SFTTrainer(
            model=adapted, args=config, train_dataset=Dataset.from_list(examples), data_collator=_collate,
            callbacks=[Check()],
        )  # fmt: skip
    else:
        trainer = Trainer(
            model=adapted, args=TrainingArguments(**common), train_dataset=examples, data_collator=_collate,
            callbacks=[Check()],
        )  # fmt: skip
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started
    steps = int(trainer.state.global_step)
    return {"seconds": seconds, "check_seconds": state["checks"], "steps": steps, "n_left": state["left"]}


class Runs:
    """Runs by what they were asked to do; each is on disk before the next starts."""

    def __init__(self, journal: Path | None) -> None:
        """Read what the journal holds."""
        self.journal = journal
        lines = journal.read_text(encoding="utf-8").splitlines() if journal and journal.exists() else []
        self.known = [json.loads(line) for line in lines]
        self._cores = Cores()

    def all(self, specs: Sequence[tuple[str, str, float, int, float]]) -> list[dict[str, Any]]:
        """The results of many runs, one core to each."""
        return self._cores.map(lambda spec: self.get(*spec), specs)

    def get(self, name: str, method: str, rate: float, seed: int, cap: float) -> dict[str, Any]:
        """The result of a run, made now unless it is known to the same cap, or finished below it."""
        for known in self.known:
            same = (known["corpus"], known["method"], known["rate"], known["seed"]) == (name, method, rate, seed)
            if same and (known["cap"] >= 0.9 * cap or (known["n_left"] == 0 and known["seconds"] <= cap)):
                return known
        spec = json.dumps([name, method, rate, seed, cap])
        found: dict[str, Any] = json.loads(self._cores.run(__file__, "--one", spec))
        self.known.append(found)
        if self.journal:
            with self.journal.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(found) + "\n")
        left = f"{found['n_left']} left" if found["n_left"] else "all above ½"
        print(
            f"  {name:9} {method:9} rate {rate:g} seed {seed}: {found['seconds']:6.1f} s "
            f"({found['check_seconds']:.1f} s checks), {found['steps']:4} steps, {left}, "
            f"{found['peak_memory_bytes'] / 2**30:.1f} GiB",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        return found


def measure(runs: Runs, names: Sequence[str], n_runs: int, cap: float) -> dict[str, dict[str, Any]]:
    """All methods on all corpora: ours first, then each peer's best rate, then the peers."""
    seeds = range(n_runs)
    found = iter(runs.all([(name, "lorasize", 0.06, seed, 3600.0) for name in names for seed in seeds]))
    ours = {name: [next(found) for _ in seeds] for name in names}
    if any(one["n_left"] for row in ours.values() for one in row):
        raise SystemExit("lorasize did not finish")
    median = {name: statistics.median(one["seconds"] for one in ours[name]) for name in names}
    pairs = [(name, method) for name in names for method in ("trainer", "trl")]
    tried = iter(runs.all([(n, m, rate, 0, median[n]) for n, m in pairs for rate in RATES]))
    best = {pair: min(((one := next(tried))["n_left"], one["seconds"], rate) for rate in RATES)[2] for pair in pairs}
    plans = [(n, m, best[n, m], seed, cap * median[n]) for n, m in pairs for seed in seeds]
    plans += [(n, "paper", 1e-2, seed, 3 * median[n]) for n in names for seed in seeds]
    plans.sort(key=lambda plan: -plan[4])  # the longest first
    done = dict(zip(plans, runs.all(plans), strict=True))
    results: dict[str, dict[str, Any]] = {}
    for name in names:
        results[name] = {"lorasize": _summary(ours[name], ours[name])}
        for method in NAMES:
            theirs = [done[plan] for plan in plans if plan[:2] == (name, method)]
            results[name][method] = _summary(theirs, ours[name]) | {"rate": theirs[0]["rate"]}
    return results


def _summary(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    bare = [(a["seconds"] - a["check_seconds"]) / b["seconds"] for a, b in zip(theirs, ours, strict=True)]
    seconds = [one["seconds"] for one in theirs]
    return {
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ratio_without_checks": statistics.median(bare),
        "at_least": any(one["n_left"] for one in theirs),
        "seconds": statistics.median(seconds),
        "seconds_range": [min(seconds), max(seconds)],
        "steps": statistics.median(one["steps"] for one in theirs),
        "n_left": [one["n_left"] for one in theirs],
        "tokens_per_second": theirs[0]["n_tokens"] / statistics.median(seconds),
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in theirs),
    }


def curve(sizes: Sequence[int]) -> list[dict[str, float]]:
    """Cost against tokens: seconds to prepare, and of one epoch's steps on everything, passages of 100 tokens."""
    from lorasize import models
    from lorasize.models import adapters
    from lorasize.models.devices import peak_memory
    from lorasize.records import Site
    from lorasize.training import Trainer, TrainingOptions

    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    site = Site(target_modules=("up_proj",), layers_to_transform=(LAYER,))
    found = []
    for n in sizes:
        encoded = encoded_corpus(base, "passages", 0, n // 100)
        adapted = adapters.attach(base.model, site, 16, 0)
        started = time.perf_counter()
        trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=n // 400))
        prepared = time.perf_counter()
        for report in trainer.steps():
            if report.step == n // 500:
                break
        ended = time.perf_counter()
        adapters.detach(adapted)
        row = {"n_tokens": float(n), "prepare_seconds": prepared - started, "epoch_seconds": ended - prepared}
        found.append(row | {"peak_memory_bytes": float(peak_memory(base.device))})
        print(
            f"  {n:6} tokens: prefix {row['prepare_seconds']:6.1f} s ({1e3 * row['prepare_seconds'] / n:.2f} ms a token), "  # noqa: E501
            f"first look and epoch {row['epoch_seconds']:6.1f} s ({1e3 * row['epoch_seconds'] / n:.2f} ms a token), "
            f"peak {peak_memory(base.device) / 2**30:.1f} GiB",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return found


def table(name: str, found: dict[str, Any]) -> str:
    """One corpus as lines of text."""
    lines = [f"{name}: up_proj layer {LAYER}, rank {RANKS[name]}"]
    for method, row in found.items():
        title = NAMES.get(method, method) + (f", rate {row['rate']:g}" if "rate" in row else "")
        sign = "≥" if row["at_least"] else " "
        ratio = f"{sign}{row['ratio']:5.1f} × ({row['ratio_range'][0]:.1f}–{row['ratio_range'][1]:.1f})"
        lines.append(
            f"  {title:36} {row['seconds']:7.1f} s {row['steps']:6.0f} steps {row['tokens_per_second']:6.1f} tokens/s "
            f"{row['peak_memory_bytes'] / 2**30:4.1f} GiB  {ratio}, without checks {row['ratio_without_checks']:.1f} ×"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", choices=RANKS, default=list(RANKS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cap", type=float, default=5.2, help="times lorasize's median at which a peer is stopped")
    parser.add_argument("--curve", type=int, nargs="*", default=[1000, 2000, 5000, 20000], metavar="TOKENS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--journal", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        pin(chosen.core)
        print(json.dumps(run_one(*json.loads(chosen.one))))
        return
    runs = Runs(chosen.journal)
    results = measure(runs, chosen.corpus, chosen.runs, chosen.cap)
    cost = curve(chosen.curve)
    ratios = {name: {m: row["ratio"] for m, row in r.items() if m != "lorasize"} for name, r in results.items()}
    if chosen.json:
        print(json.dumps({"ratios": ratios, "results": results, "curve": cost, "runs": chosen.runs, "cap": chosen.cap}))
    else:
        print("\n".join(table(name, found) for name, found in results.items()))


if __name__ == "__main__":
    main()
