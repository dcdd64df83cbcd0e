"""What it is worth that steps see a part of a large head: one probe's training with it and without, on one thread.

    python benchmarks/shortlist.py MODEL [--tokens 60] [--rank 1] [--seed 0] [--layer LAYER]

Three ways: with the whole head, with a part that is seen anew as soon as it was wrong, and with one that is seen anew
every eight steps whatever it was. Printed for each: optimiser steps until every token of the probe (random tokens,
up_proj) is above ½, the loss after 100 of them, and seconds of the processor a step. The model must have at least
100,000 rows in its head.
"""

from __future__ import annotations

import argparse
import os
import time
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from lorasize import models
from lorasize.losses import shortlist
from lorasize.models import BaseModel, adapters
from lorasize.probing import probe_passage
from lorasize.records import LAW_STEPS, ProbeSpec
from lorasize.training import Trainer, TrainingOptions


def train(base: BaseModel, spec: ProbeSpec) -> str:
    """Steps, tokens left, loss after LAW_STEPS steps, and processor seconds a step."""
    passage = probe_passage(base, spec)
    adapted = adapters.attach(base.model, spec.site, spec.rank, spec.seed)
    try:
        trainer = Trainer(adapted, [passage], TrainingOptions(max_steps=spec.max_steps, seed=spec.seed))
        trainer.evaluate()
        started = time.process_time()
        reports = list(trainer.steps())
        seconds = time.process_time() - started
    finally:
        adapters.detach(adapted)
    last, early = reports[-1], max((r for r in reports if r.step <= LAW_STEPS), key=lambda r: r.step)
    return (
        f"{last.step} steps, {last.n_stubborn} tokens left, loss {early.loss:.2f} after {early.step}, "
        f"{seconds / last.step:.2f} s a step"
    )


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layer", type=int, help="two thirds of the depth when left out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = models.load(chosen.model, device="cpu", dtype="float32")
    layer = 2 * base.n_layers // 3 if chosen.layer is None else chosen.layer
    where = {"target_modules": ("up_proj",), "layers_to_transform": (layer,), "rank": chosen.rank}
    spec = ProbeSpec(**where, kind="random", n_tokens=chosen.tokens, seed=chosen.seed, max_steps=300)
    print(f"shortlist:   {train(base, spec)}", flush=True)
    with mock.patch.object(shortlist, "_lasts", return_value=8):
        print(f"every eight: {train(base, spec)}", flush=True)
    with mock.patch.object(shortlist, "LARGE", base.n_ids + 1):
        print(f"whole head:  {train(base, spec)}", flush=True)


if __name__ == "__main__":
    main()
