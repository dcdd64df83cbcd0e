"""Tokens that a model's head can hardly tell apart: how many there are, and what becomes of them in training.

    python benchmarks/alike_tokens.py [MODEL] [--draw 512] [--lift TOKEN …] [--steps 100]

Printed: how long hidden states are on the neutral text, the bound on ln(p / (1 − p)) of `--draw` random tokens, and how
many of them a probe would pass over. `--lift` trains an adapter of rank 32 on up_proj and down_proj in four layers to
say one such token, and prints its loss and how long the hidden state before it has become.
"""

from __future__ import annotations

import argparse
import os
import random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.head import decoder
from lorasize.losses.reach import DISTINCT, NARROW, Reach, reach_of
from lorasize.models import BaseModel, adapters
from lorasize.records import Passage, Site
from lorasize.training import Trainer, TrainingOptions

_SHOWN = 24


def show_bounds(base: BaseModel, reach: Reach, n: int) -> None:
    """Bounds of random tokens, the lowest one by one."""
    drawn = random.Random(0).sample(range(base.n_ids), n)
    bounds = dict(zip(drawn, reach.log_odds(drawn).tolist(), strict=True))
    lowest = sorted(drawn, key=lambda token: bounds[token])[:_SHOWN]
    print(f"longest hidden state {reach.longest:.0f}; {n} random tokens of {base.n_ids:,}")
    for below in (0.0, NARROW, DISTINCT):
        print(f"  bound below {below:g}: {sum(bound <= below for bound in bounds.values())}")
    print("  lowest:", ", ".join(f"{token} {base.tokenizer.decode([token])!r} {bounds[token]:.1f}" for token in lowest))


def lift(base: BaseModel, reach: Reach, token: int, steps: int) -> None:
    """Train an adapter on nothing but this token."""
    prompt, stop = tuple(base.tokenizer("[probe]\n").input_ids), base.tokenizer.eos_token_id
    passage = EncodedPassage(Passage(id="p", file="p", line=1, prompt="[probe]\n", target=""), prompt, (token, stop))
    middle = 2 * base.n_layers // 3
    site = Site(target_modules=("up_proj", "down_proj"), layers_to_transform=tuple(range(middle - 4, middle + 3, 2)))
    adapted = adapters.attach(base.model, site, 32, 0)
    try:
        trainer = Trainer(adapted, [passage], TrainingOptions(max_steps=steps))
        (*_, last) = trainer.steps()
        with torch.no_grad():
            ids = torch.tensor([[*prompt]], device=base.device)
            hidden = decoder(base.model)(input_ids=ids, use_cache=False).last_hidden_state[0, -1]
    finally:
        adapters.detach(adapted)
    loss, length = float(trainer.known.losses[0]), float(hidden.norm())
    print(
        f"{token} {base.tokenizer.decode([token])!r}: bound {float(reach.log_odds([token])):.1f}, "
        f"loss {loss:.2f} after {last.step} steps, hidden state {length:.0f}, {length / reach.longest:.1f} of longest"
    )


def main() -> None:
    """Print one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=models.BUILTIN)
    parser.add_argument("--draw", type=int, default=512)
    parser.add_argument("--lift", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=100)
    chosen = parser.parse_args()
    base = models.load(chosen.model, device="cpu", dtype="float32")
    reach = reach_of(base)
    if reach is None:
        raise SystemExit(f"{chosen.model}: its head is not known")
    show_bounds(base, reach, chosen.draw)
    for token in chosen.lift:
        lift(base, reach, token, chosen.steps)


if __name__ == "__main__":
    main()
