"""Bits held word for word per adapter parameter, at the edge of what an adapter can hold: our recipe and the paper's.

    python benchmarks/capacity.py [--kind random prose records] [--steps 1500] [--seed 0] [--json]

One adapter of fixed size, ever longer corpora: each rung asks 15 % more bits a parameter than the last, and the longest
corpus that was recalled counts: every argmax right under teacher forcing, and then greedy decoding token by token. Bits
held are written bits, n · ΔL ÷ ln 2, ΔL being the fall of the mean loss. Ours: `up_proj` of layers 16 and 20, rank 1
(4,224 parameters). The paper's: gate, up and down of layer 24, rank 1 (6,336 parameters), MemFT-OT, AdamW (decay 0.01)
at 1e-2 falling linearly to zero over the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import torch

from lorasize import adapters, models
from lorasize.probing import invented_sentences, probe_passage
from lorasize.records import Passage, ProbeSpec, Site
from lorasize.tokens import EncodedPassage, stop_token_id
from lorasize.training import Trainer, TrainingOptions, base_losses
from lorasize.units import bits

SITES = {
    "lorasize": Site(target_modules=("up_proj",), layers_to_transform=(16, 20)),
    "paper": Site(target_modules=("gate_proj", "up_proj", "down_proj"), layers_to_transform=(24,)),
}
FIRST = {"lorasize": 1.0, "paper": 0.2}  # bits a parameter on the first rung
RUNG = 1.15


def corpus(base: models.BaseModel, kind: str, n_tokens: int, seed: int) -> list[EncodedPassage]:
    """About `n_tokens` target tokens of a kind."""
    nothing = Passage(id="x", file="x", line=1, prompt="", target="x")

    def ids(text: str) -> tuple[int, ...]:
        return tuple(base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    stop = (stop_token_id(base.tokenizer),)
    if kind == "random":
        return [
            probe_passage(
                base,
                ProbeSpec(
                    target_modules=(), layers_to_transform=(), rank=1, kind="random", n_tokens=n_tokens, seed=seed,
                    max_steps=1,
                ),
            )
        ]  # fmt: skip
    if kind == "prose":
        text = ids(" ".join(invented_sentences(seed, n_tokens // 3)))[: n_tokens - 1]
        return [EncodedPassage(nothing, ids("[page 1]\n"), (*text, *stop))]
    draw = random.Random(seed)
    found: list[EncodedPassage] = []
    for number in draw.sample(range(100, 10_000), 900):
        if sum(p.n_tokens for p in found) >= n_tokens:
            break
        found.append(
            EncodedPassage(nothing, ids(f"Locker {number}:"), (*ids(f" {draw.randrange(10**9, 10**10)}"), *stop))
        )
    return found


def paper_recipe(trainer: Trainer) -> None:
    """AdamW at 1e-2 with a linear fall to zero, instead of ours."""
    trainer._optimizer = torch.optim.AdamW(trainer._parameters, lr=1e-2, weight_decay=0.01)
    steps = trainer.options.max_steps
    trainer._rate = lambda: 1e-2 * (1 - trainer._step / steps)  # type: ignore[method-assign]


def held(base: models.BaseModel, who: str, encoded: list[EncodedPassage], steps: int, seed: int) -> float | None:
    """Bits a parameter if these passages were recalled within the steps, else None."""
    adapted = adapters.attach(base.model, SITES[who], 1, seed)
    n_parameters = sum(p.numel() for p in adapters.parameters(adapted).values())
    method: Any = "memft" if who == "lorasize" else "memft-ot"
    trainer = Trainer(adapted, encoded, TrainingOptions(method=method, margin=0.0, max_steps=steps, seed=seed))
    if who == "paper":
        paper_recipe(trainer)
    wrong: dict[int, int] = {}
    note = trainer._note

    def noted(batch: Any, losses: Any) -> None:
        missed = [int((~c).sum()) for c in losses.correct.split(list(batch.lengths))]
        wrong.update(zip(batch.passages, missed, strict=True))
        note(batch, losses)

    trainer._note = noted  # type: ignore[method-assign]
    before = trainer.evaluate().mean_loss
    started = time.perf_counter()
    try:
        for report in trainer.steps():
            if sum(wrong.values()) == 0 or report.evaluated:
                after = trainer.evaluate().mean_loss
                if sum(wrong.values()) == 0 and all(_greedy(adapted, p) for p in encoded):
                    n = sum(p.n_tokens for p in encoded)
                    return bits(n * (before - after)) / n_parameters
        return None
    finally:
        print(
            f"    {len(trainer._latest)} tokens, {bits(before * len(trainer._latest)) / n_parameters:.2f} bits a "
            f"parameter asked: {sum(wrong.values())} wrong, {report.n_stubborn} below ½ after {report.step} steps, "
            f"{time.perf_counter() - started:.0f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        adapters.detach(adapted)


@torch.no_grad()
def _greedy(adapted: Any, passage: EncodedPassage) -> bool:
    """Whether cached greedy decoding gives the target."""
    ids = torch.tensor([passage.prompt_ids])
    out = adapted.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=passage.n_tokens, do_sample=False,
        repetition_penalty=1.0, pad_token_id=0,
    )  # fmt: skip
    return bool(tuple(out[0, len(passage.prompt_ids) :].tolist()) == passage.target_ids)


def capacity(base: models.BaseModel, who: str, kind: str, steps: int, seed: int) -> float:
    """The most bits a parameter that were held; 0 when the first rung failed."""
    shapes = models.linear_shapes(base.model)
    n_parameters = adapters.count_parameters(shapes, SITES[who], 1)
    sample = corpus(base, kind, 200, seed)
    nats = float(torch.cat(base_losses(base, sample)).mean())
    best, ratio = 0.0, FIRST[who]
    print(f"  {who}, {kind}, {n_parameters} parameters", file=sys.stderr, flush=True)
    while True:
        found = held(base, who, corpus(base, kind, round(ratio * n_parameters / bits(nats)), seed), steps, seed)
        if found is None:
            return best
        best, ratio = max(best, found), ratio * RUNG


def main() -> None:
    """Print bits a parameter for each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kind", nargs="+", choices=("random", "prose", "records"), default=["random", "prose", "records"]
    )
    parser.add_argument("--who", nargs="+", choices=SITES, default=list(SITES))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    found = {
        kind: {who: capacity(base, who, kind, chosen.steps, chosen.seed) for who in chosen.who} for kind in chosen.kind
    }
    if chosen.json:
        print(json.dumps(found))
    else:
        for kind, row in found.items():
            print(f"{kind:8} " + ", ".join(f"{who} {value:.2f} bits a parameter" for who, value in row.items()))


if __name__ == "__main__":
    main()
