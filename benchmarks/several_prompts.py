"""What further prompts for one target cost: facts asked by one, two and four questions each, in one small adapter.

    python benchmarks/several_prompts.py [--facts 8] [--prompts 1 2 4] [--seeds 0 1] [--max-steps 400]

Each fact is an invented sentence; the adapter is `up_proj` of layer 20, rank 1 (2,112 parameters), the recipe the
product's. Printed: the bits that `plan` counts (a target once, but for its first tokens after each further prompt), the
bits if every token counted, and the steps until every token of every prompt is above the threshold.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.losses.base import base_losses
from lorasize.losses.demand import demand
from lorasize.models import adapters
from lorasize.probing import invented_sentences
from lorasize.records import Passage, Reading, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.units import bits

SITE = Site(target_modules=("up_proj",), layers_to_transform=(20,))
QUESTIONS = ("What is fact {}?", "Tell me fact number {}.", "Fact {}, please:", "I forgot fact {}. What does it say?")


def corpus(base: models.BaseModel, n_facts: int, n_prompts: int, seed: int) -> list[EncodedPassage]:
    """The facts, each behind so many questions."""
    facts = invented_sentences(1000 * seed, n_facts)
    passages = [
        Passage(id="", file="facts", line=number, prompt=question.format(number), target=f" {fact}")
        for number, fact in enumerate(facts, start=1)
        for question in QUESTIONS[:n_prompts]
    ]
    return encode_corpus(passages, base.tokenizer, Reading(), base.max_positions, base.n_ids)


def main() -> None:
    """Print a line for each number of prompts and each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=8)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max-steps", type=int, default=400)
    chosen = parser.parse_args()
    base = models.load(models.BUILTIN, device="cpu", dtype="float32")
    for seed in chosen.seeds:
        for n_prompts in chosen.prompts:
            encoded = corpus(base, chosen.facts, n_prompts, seed)
            losses = base_losses(base, encoded)
            adapted = adapters.attach(base.model, SITE, 1, seed)
            *_, last = Trainer(adapted, encoded, TrainingOptions(max_steps=chosen.max_steps, seed=seed)).steps()
            adapters.detach(adapted)
            every = bits(sum(float(loss.sum()) for loss in losses))
            ended = f"{last.n_stubborn} tokens left" if last.n_stubborn else "all above the threshold"
            print(
                f"seed {seed}, {chosen.facts} facts, {n_prompts} prompts each: "
                f"{demand(encoded, losses).bits:,.0f} bits by plan, {every:,.0f} if every token counts: "
                f"{ended} after {last.step} steps",
                flush=True,
            )


if __name__ == "__main__":
    main()
