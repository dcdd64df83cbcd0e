"""Bits held word for word per adapter parameter, at the edge of what an adapter can hold: our recipe and the paper's.

    python benchmarks/capacity.py [--kind random prose records] [--steps 800] [--seed 0] [--json]

One adapter of fixed size, ever longer corpora: each rung asks 15 % more bits a parameter than the last, and the longest
corpus that was recalled counts: every argmax right under teacher forcing, and then greedy decoding token by token. Bits
held are written bits, n · ΔL ÷ ln 2, ΔL being the fall of the mean loss.

Ours: `up_proj`, rank 1, of layers 16 and 20 (4,224 parameters) for random tokens, of layer 20 (2,112) for the others;
memft, whose rate here follows the share of wrong tokens, since recall is asked and not p > ½. The paper's: gate, up and
down of layer 24, rank 1 (6,336 parameters), MemFT-OT, AdamW (decay 0.01) at 1e-2 falling linearly to zero over the
steps. Every ladder has a process and a core to itself.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from typing import Any

from support.cores import Cores, pin

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
if "--core" in sys.argv:
    pin(int(sys.argv[sys.argv.index("--core") + 1]))

import torch

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage, stop_token_id
from lorasize.losses.base import base_losses
from lorasize.losses.batches import Batch
from lorasize.losses.token_losses import TokenLosses
from lorasize.models import adapters
from lorasize.probing import invented_sentences, probe_passage
from lorasize.records import Passage, ProbeSpec, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.rate import Rate
from lorasize.units import bits

WHO = ("lorasize", "paper")
KINDS = ("random", "prose", "records")
PAPER = Site(target_modules=("gate_proj", "up_proj", "down_proj"), layers_to_transform=(24,))
FIRST = {"random": 1.66, "prose": 0.9, "records": 0.9}  # bits a parameter that the first rung asks of ours
FIRST_OF_PAPER = 0.45
RUNG = 1.15


def site_of(who: str, kind: str) -> Site:
    """Where the adapter sits."""
    if who == "paper":
        return PAPER
    return Site(target_modules=("up_proj",), layers_to_transform=(16, 20) if kind == "random" else (20,))


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


class Wrong:
    """How many tokens of each passage were not the argmax when last looked at."""

    def __init__(self) -> None:
        """Nothing was looked at."""
        self.by_passage: dict[int, int] = {}

    def note(self, batch: Batch, losses: TokenLosses) -> None:
        """Count those of a batch."""
        missed = [int((~c).sum()) for c in losses.correct.split(list(batch.lengths))]
        self.by_passage.update(zip(batch.passages, missed, strict=True))

    @property
    def total(self) -> int:
        """Those of all passages."""
        return sum(self.by_passage.values())


def held(
    base: models.BaseModel, who: str, kind: str, encoded: list[EncodedPassage], steps: int, seed: int
) -> float | None:
    """Bits a parameter if these passages were recalled within the steps, else None."""
    adapted = adapters.attach(base.model, site_of(who, kind), 1, seed)
    n_parameters = sum(p.numel() for p in adapters.parameters(adapted).values())
    n, wrong = sum(p.n_tokens for p in encoded), Wrong()
    ours, rate = who == "lorasize", Rate(0.06)
    recipe: dict[str, Any] = {"rate": lambda step, stubborn: rate(step, wrong.total / n)}  # in place of those below ½
    if not ours:  # AdamW at 1e-2 with a linear fall to zero
        recipe = {
            "optimizer": lambda trained: torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01),
            "rate": lambda step, stubborn: 1e-2 * (1 - step / steps),
        }
    options = TrainingOptions(method="memft" if ours else "memft-ot", margin=0.0, max_steps=steps, seed=seed)
    trainer = Trainer(adapted, encoded, options, watch=wrong.note, **recipe)
    before = trainer.evaluate().mean_loss
    started = time.perf_counter()
    try:
        for report in trainer.steps():
            if wrong.total == 0 or report.evaluated:
                after = trainer.full_look().mean_loss
                if wrong.total == 0 and all(_greedy(adapted, p) for p in encoded):
                    ratio = bits(n * (before - after)) / n_parameters
                    print(f"  {who}, {kind}: {n} tokens recalled, {ratio:.3f} bits a parameter", file=sys.stderr)
                    return ratio
        return None
    finally:
        asked = bits(before * n) / n_parameters
        print(
            f"  {who}, {kind}: {n} tokens, {asked:.2f} bits a parameter asked: {wrong.total} wrong, "
            f"{report.n_stubborn} below ½ after {report.step} steps, {time.perf_counter() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
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
    n_parameters = adapters.count_parameters(shapes, site_of(who, kind), 1)
    sample = corpus(base, kind, 200, seed)
    nats = float(torch.cat(base_losses(base, sample)).mean())
    best, ratio = 0.0, FIRST[kind] if who == "lorasize" else FIRST_OF_PAPER
    while True:
        found = held(base, who, kind, corpus(base, kind, round(ratio * n_parameters / bits(nats)), seed), steps, seed)
        if found is None:
            return best
        best, ratio = max(best, found), ratio * RUNG


def main() -> None:
    """Print bits a parameter for each kind of text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        base = models.load(models.BUILTIN, device="cpu", dtype="float32")
        print(capacity(base, *chosen.one, chosen.steps, chosen.seed))
        return
    cores, ladders = Cores(), [(who, kind) for kind in chosen.kind for who in chosen.who]
    common = ("--steps", str(chosen.steps), "--seed", str(chosen.seed))
    found = cores.map(lambda ladder: float(cores.run(__file__, "--one", *ladder, *common)), ladders)
    rows: dict[str, dict[str, float]] = {kind: {} for kind in chosen.kind}
    for (who, kind), value in zip(ladders, found, strict=True):
        rows[kind][who] = value
    if chosen.json:
        print(json.dumps(rows))
    else:
        for kind, row in rows.items():
            print(f"{kind:8} " + ", ".join(f"{who} {value:.2f} bits a parameter" for who, value in row.items()))


if __name__ == "__main__":
    main()
