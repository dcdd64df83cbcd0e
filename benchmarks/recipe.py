"""Steps to "every token above ½" under other optimisers and objectives: why the recipe is what it is.

    python benchmarks/recipe.py [--task page|random|passages|twenty] [--only WORD] [--seeds 1]

One adapter learns one corpus, once for each variant and seed, with at most 200 steps: a page of 400 text tokens (rank
8, layer 24), 96 random tokens (rank 1, layer 20), or 10 passages of 100 text tokens (rank 8, layer 24). A run that does
not get there prints the tokens left. `twenty` is 20 passages of 100 at rank 16, with at most 400 steps. A variant gives
the trainer another optimiser, rate or objective than the recipe's, or starts the adapter in another way.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import torch
from torch import Tensor, nn

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import make_batches
from lorasize.losses.token_losses import TokenLosses
from lorasize.models import adapters
from lorasize.probing import probe_passage
from lorasize.records import BATCH_TOKENS, Method, ProbeKind, ProbeSpec, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.objectives import Objective
from lorasize.training.rate import Rate, Schedule

TASKS: dict[str, tuple[int, int, ProbeKind, int, int]] = {  # layer, rank, kind, passages, tokens in each
    "page": (24, 8, "text", 1, 400),
    "random": (20, 1, "random", 1, 96),
    "passages": (24, 8, "text", 10, 100),
    "twenty": (24, 16, "text", 20, 100),
}
RATE, BETAS = 0.06, (0.9, 0.95)  # the recipe's
Start = Callable[[Any, Sequence[EncodedPassage]], None]


def as_it_is(adapted: Any, encoded: Sequence[EncodedPassage]) -> None:
    """The adapter starts as the recipe's does."""


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe; None where nothing does."""

    rate: float = RATE
    method: Method = "memft"
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Schedule | None = None
    objective: Objective | None = None
    start: Start = as_it_is


def adam(first: float, second: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Adam with these averages."""
    return lambda trained: torch.optim.Adam(trained, betas=(first, second))


def ratio(of_b: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """LoRA+: B learns `of_b` times as fast as A, around the same geometric mean."""

    class Scaled(torch.optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            trained = self.param_groups[0]["params"]
            before = [p.detach().clone() for p in trained]
            done = super().step(closure)
            for k, (p, old) in enumerate(zip(trained, before, strict=True)):
                p.copy_(old + (p - old) * (of_b**0.5 if k % 2 else of_b**-0.5))  # A and B alternate
            return done

    return lambda trained: Scaled(trained, betas=BETAS)


class Orthogonalised(torch.optim.Optimizer):
    """Muon: momentum whose singular values are set to one; on rank-one factors that is a normalised step."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        """No momentum yet."""
        super().__init__(trained, {"lr": RATE})
        self.momenta = [torch.zeros_like(p) for p in trained]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step of one size in all directions."""
        (group,) = self.param_groups
        for p, m in zip(group["params"], self.momenta, strict=True):
            m.mul_(0.9).add_(p.grad)
            u, _, vh = torch.linalg.svd(m, full_matrices=False)
            p.sub_(u @ vh, alpha=group["lr"] * (p.numel() / len(u[0])) ** 0.5)


class SecondOrder(torch.optim.Adam):
    """After 20 steps of Adam, an L-BFGS direction of memory 20 with a fixed step."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        """Nothing is known of the curvature yet."""
        super().__init__(trained, betas=BETAS)
        self.lbfgs = torch.optim.LBFGS(trained, lr=0.3, max_iter=1, history_size=20)
        self.taken = 0

    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        self.taken += 1
        if self.taken <= 20:
            return super().step(closure)
        return self.lbfgs.step(lambda: torch.tensor(0.0))  # without a line search it asks for no loss


@dataclass
class Weighed(Objective):
    """Another weight for each token, from its loss."""

    weigh: Callable[[Tensor], Tensor] = torch.ones_like

    def weights(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Weights before normalisation, shape (token,)."""
        return self.weigh(losses.loss)


def weighed(weigh: Callable[[Tensor], Tensor]) -> Objective:
    """An objective with this weight for each token, from its loss."""
    return Weighed("memft", weigh=weigh)


def ending(release: float, power: float, calm: float, slowest: float) -> Variant:
    """Another release point, weight loss^power, and a rate that falls below a share `calm`, to `slowest` of it."""
    objective = weighed(lambda loss: (loss >= -math.log(release)) * loss**power)
    return Variant(objective=objective, schedule=Rate(RATE, calm, slowest))


def scaled_a(factor: float) -> Start:
    """A starts larger or smaller."""

    def start(adapted: Any, encoded: Sequence[EncodedPassage]) -> None:
        with torch.no_grad():
            for p in list(adapters.parameters(adapted).values())[0::2]:
                p.mul_(factor)

    return start


def principal_a(adapted: Any, encoded: Sequence[EncodedPassage]) -> None:
    """A starts at the leading principal directions of what enters the adapted layer, at its usual norm."""
    base, first = adapters.base_of(adapted), adapters.first_adapted_layer(adapted)
    batches = make_batches(base, encoded, first, BATCH_TOKENS, base.device)
    states = torch.cat([b.stored[b.rows, b.columns] for b in batches]).float()
    directions = torch.linalg.svd(states - states.mean(dim=0), full_matrices=False).Vh
    with torch.no_grad():
        for p in list(adapters.parameters(adapted).values())[0::2]:
            p.copy_(directions[: len(p)] * (p.norm() / len(p) ** 0.5))


def root(loss: Tensor) -> Tensor:
    """The recipe's weight with a release at 0.7."""
    return (loss >= 0.357) * loss.sqrt()


VARIANTS: dict[str, Variant] = {
    "memft, rate 0.06 (the default)": Variant(),
    "rate 0.03": Variant(0.03),
    "rate 0.1": Variant(0.1),
    "constant rate": Variant(schedule=lambda step, stubborn: RATE),
    "betas 0.8, 0.95": Variant(optimizer=adam(0.8, 0.95)),
    "betas 0.9, 0.9": Variant(optimizer=adam(0.9, 0.9)),
    "betas 0.9, 0.99": Variant(optimizer=adam(0.9, 0.99)),
    "betas 0.95, 0.95": Variant(optimizer=adam(0.95, 0.95)),
    "rate 0.1, betas 0.8, 0.95": Variant(0.1, optimizer=adam(0.8, 0.95)),
    "rate 0.1, betas 0.8, 0.95, principal": Variant(0.1, optimizer=adam(0.8, 0.95), start=principal_a),
    "rate 0.15, betas 0.8, 0.95": Variant(0.15, optimizer=adam(0.8, 0.95)),
    "rate 0.1, betas 0.7, 0.9": Variant(0.1, optimizer=adam(0.7, 0.9)),
    "rate 0.1, weight √loss": Variant(0.1, objective=weighed(root)),
    "LoRA+, B 4 times as fast": Variant(optimizer=ratio(4.0)),
    "LoRA+, A 4 times as fast": Variant(optimizer=ratio(0.25)),
    "A starts 4 times as large": Variant(start=scaled_a(4.0)),
    "A starts at a quarter": Variant(start=scaled_a(0.25)),
    "A starts at principal directions": Variant(start=principal_a),
    "orthogonalised, rate 0.02": Variant(0.02, optimizer=Orthogonalised),
    "orthogonalised, rate 0.06": Variant(0.06, optimizer=Orthogonalised),
    "L-BFGS after 20 steps": Variant(optimizer=SecondOrder),
    "focal, (1 - p)": Variant(objective=weighed(lambda loss: 1 - torch.exp(-loss))),
    "focal, (1 - p)²": Variant(objective=weighed(lambda loss: (1 - torch.exp(-loss)) ** 2)),
    "release at 0.9": Variant(objective=weighed(lambda loss: (loss >= 0.105).float())),
    "release at 0.52": Variant(objective=weighed(lambda loss: (loss >= 0.654).float())),
    "hardest last: weight 1 / (1 + loss)": Variant(objective=weighed(lambda loss: (loss >= 0.357) / (1 + loss))),
    "hardest first: weight √loss": Variant(objective=weighed(root)),
    "ending 0.7, 1, 0.2 to 0.1": ending(0.7, 0.0, 0.2, 0.1),
    "ending 0.7, 1, 0.2 to 0.2": ending(0.7, 0.0, 0.2, 0.2),
    "ending 0.7, 1, 0.2 to 0.3": ending(0.7, 0.0, 0.2, 0.3),
    "ending 0.7, √loss, 0.2 to 0.1": ending(0.7, 0.5, 0.2, 0.1),
    "ending 0.82, loss, 0.2 to 0.1": ending(0.82, 1.0, 0.2, 0.1),
    "ending 0.9, √loss, 0.2 to 0.1": ending(0.9, 0.5, 0.2, 0.1),
    "sft": Variant(method="sft"),
    "memft-ot as published (release at the threshold)": Variant(method="memft-ot"),
    "memft-sw": Variant(method="memft-sw"),
}


def run(base: models.BaseModel, task: str, name: str, seed: int) -> str:
    """What one variant did on one seed."""
    layer, rank, kind, n_passages, n_tokens = TASKS[task]
    variant = VARIANTS[name]
    site = Site(target_modules=("up_proj",), layers_to_transform=(layer,))
    specs = [
        ProbeSpec(
            target_modules=site.target_modules, layers_to_transform=site.layers_to_transform, rank=rank, kind=kind,
            n_tokens=n_tokens, seed=1000 * seed + k, max_steps=200,
        )
        for k in range(n_passages)
    ]  # fmt: skip
    passages = [probe_passage(base, spec) for spec in specs]
    if n_passages > 1:  # prompts that differ, or the passages could not be told apart
        numbers = [tuple(base.tokenizer(f"[page {k}]\n").input_ids) for k in range(n_passages)]
        passages = [type(p)(p.passage, number, p.target_ids) for p, number in zip(passages, numbers, strict=True)]
    adapted = adapters.attach(base.model, site, rank, seed)
    started = time.perf_counter()
    variant.start(adapted, passages)
    trainer = Trainer(
        adapted,
        passages,
        TrainingOptions(
            method=variant.method,
            learning_rate=variant.rate,
            max_steps=400 if n_passages == 20 else 200,
            seed=seed,
        ),
        optimizer=variant.optimizer,
        rate=variant.schedule,
        objective=variant.objective,
    )
    *_, last = trainer.steps()
    seconds = time.perf_counter() - started
    adapters.detach(adapted)
    left = last.n_stubborn if last.min_probability < 0.52 else 0
    return f"{last.step} steps, {seconds:.0f} s" if not left else f"{left} left after {last.step}"


def main() -> None:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="page")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    base = models.load(models.BUILTIN)
    for name in VARIANTS:
        if chosen.only in name:
            try:
                results = [run(base, chosen.task, name, seed) for seed in range(chosen.seeds)]
            except Exception as error:  # noqa: BLE001 - a variant that diverges is a result
                results = [f"{type(error).__name__}: {error}"]
                base = models.load(models.BUILTIN)
            print(f"{name:50} {'; '.join(results)}", flush=True)


if __name__ == "__main__":
    main()
