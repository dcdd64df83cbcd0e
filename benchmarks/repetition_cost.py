"""What a copy costs: one page, the page twice, an edited copy beside it, and two different pages, in one small adapter.

    python benchmarks/repetition_cost.py [--tokens 300] [--seeds 0 1] [--max-steps 400]

Each passage has its own prompt; the adapter is `up_proj` of layer 20, rank 1 (2,112 parameters), the recipe the
product's. Printed: bits per parameter that each corpus would ask if every token counted, and if tokens that repeat an
earlier passage cost nothing (`lorasize.repetition`), and the steps until every token is above the threshold. A
repeated token that costs nothing leaves a copy about as easy as the page alone.
"""

from __future__ import annotations

import argparse
import os
import random

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage, stop_token_id
from lorasize.losses.base import base_losses
from lorasize.losses.demand import demand
from lorasize.models import adapters
from lorasize.probing import invented_sentences
from lorasize.records import Passage, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.units import bits

SITE = Site(target_modules=("up_proj",), layers_to_transform=(20,))


def corpora(base: models.BaseModel, n_tokens: int, seed: int) -> dict[str, list[EncodedPassage]]:
    """The four corpora."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def page(number: int) -> tuple[int, ...]:
        text = ids(" ".join(invented_sentences(1000 * seed + number, n_tokens // 3)))
        return (*text[: n_tokens - 1], stop_token_id(base.tokenizer))

    def passage(number: int, target: tuple[int, ...]) -> EncodedPassage:
        about = Passage(id=str(number), file="x", line=number, prompt="", target="x")
        return EncodedPassage(about, ids(f"[page {number}]\n"), target)

    one, draw = page(1), random.Random(seed)
    places = draw.sample(range(20, n_tokens - 20), n_tokens // 30)
    edited = tuple(draw.choice(one[:-1]) if k in places else token for k, token in enumerate(one))
    return {
        "one page": [passage(1, one)],
        "the page twice": [passage(1, one), passage(2, one)],
        f"an edited copy ({len(places)} tokens)": [passage(1, one), passage(2, edited)],
        "two different pages": [passage(1, one), passage(2, page(2))],
    }


def main() -> None:
    """Print a line for each corpus and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max-steps", type=int, default=400)
    chosen = parser.parse_args()
    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    for seed in chosen.seeds:
        for name, encoded in corpora(base, chosen.tokens, seed).items():
            losses = base_losses(base, encoded)
            adapted = adapters.attach(base.model, SITE, 1, seed)
            n_parameters = sum(p.numel() for p in adapters.parameters(adapted).values())
            trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=chosen.max_steps, seed=seed))
            *_, last = trainer.steps()
            adapters.detach(adapted)
            every = bits(sum(float(loss.sum()) for loss in losses)) / n_parameters
            once = demand(encoded, losses).bits / n_parameters
            ended = f"{last.n_stubborn} tokens left" if last.n_stubborn else "all above the threshold"
            print(
                f"seed {seed}, {name:28} {every:.2f} bits a parameter if every token counts, {once:.2f} if repeats "
                f"are free: {ended} after {last.step} steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
