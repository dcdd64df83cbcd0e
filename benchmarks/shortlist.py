"""What it is worth that steps see a part of a large head: one probe's training with it and without, on one thread.

    python benchmarks/shortlist.py MODEL [--tokens 60] [--layer LAYER]

Printed for each: optimiser steps until every token of the probe (random tokens, rank 1, up_proj) is above ½, and
seconds of the processor a step. The model must have at least 100,000 rows in its head.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from lorasize import models
from lorasize.losses import shortlist
from lorasize.models import BaseModel, adapters
from lorasize.probing import probe_passage
from lorasize.records import ProbeSpec
from lorasize.training import Trainer, TrainingOptions


def train(base: BaseModel, spec: ProbeSpec) -> tuple[int, int, float]:
    """Steps, tokens left, and processor seconds a step."""
    passage = probe_passage(base, spec)
    adapted = adapters.attach(base.model, spec.site, spec.rank, spec.seed)
    try:
        trainer = Trainer(adapted, [passage], TrainingOptions(max_steps=spec.max_steps, seed=spec.seed))
        trainer.evaluate()
        started = time.process_time()
        (*_, last) = trainer.steps()
        seconds = time.process_time() - started
    finally:
        adapters.detach(adapted)
    return last.step, last.n_stubborn, seconds / last.step


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--layer", type=int, help="two thirds of the depth when left out")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = models.load(chosen.model, device="cpu", dtype="float32")
    layer = 2 * base.n_layers // 3 if chosen.layer is None else chosen.layer
    where = {"target_modules": ("up_proj",), "layers_to_transform": (layer,), "rank": 1}
    spec = ProbeSpec(**where, kind="random", n_tokens=chosen.tokens, seed=0, max_steps=200)
    large = shortlist.LARGE
    for name, least in (("whole head", base.n_ids + 1), ("shortlist", large)):
        shortlist.LARGE = least
        steps, left, seconds = train(base, spec)
        print(f"{name:10}: {steps} steps, {left} tokens left, {seconds:.2f} s a step")


if __name__ == "__main__":
    main()
