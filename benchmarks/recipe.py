"""Steps to "every token above ½" under other optimisers and objectives: why the recipe is what it is.

    python benchmarks/recipe.py [--task page|random|passages|twenty] [--only WORD] [--seeds 1]

One adapter learns one corpus, once for each variant and seed, with at most 200 steps: a page of 400 text tokens (rank
8, layer 24), 96 random tokens (rank 1, layer 20), or 10 passages of 100 text tokens (rank 8, layer 24). A run that does
not get there prints the tokens left. `twenty` is 20 passages of 100 at rank 16, with at most 400 steps. Variants reach
into `Trainer`, which offers the winner only.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import torch
from torch import Tensor, nn

from lorasize import models
from lorasize.losses.token_losses import TokenLosses
from lorasize.models import adapters
from lorasize.probing import probe_passage
from lorasize.records import Method, ProbeKind, ProbeSpec, Site
from lorasize.training import Trainer, TrainingOptions

TASKS: dict[str, tuple[int, int, ProbeKind, int, int]] = {  # layer, rank, kind, passages, tokens in each
    "page": (24, 8, "text", 1, 400),
    "random": (20, 1, "random", 1, 96),
    "passages": (24, 8, "text", 10, 100),
    "twenty": (24, 16, "text", 20, 100),
}
Change = Callable[[Trainer], None]


def betas(first: float, second: float) -> Change:
    """Adam with these averages."""

    def change(trainer: Trainer) -> None:
        trainer._optimizer.param_groups[0]["betas"] = (first, second)

    return change


def constant(trainer: Trainer) -> None:
    """No schedule: the rate does not fall as few tokens are left."""
    rate = trainer.options.learning_rate
    trainer._rate = lambda: rate  # type: ignore[method-assign]


def ratio(of_b: float) -> Change:
    """LoRA+: B learns `of_b` times as fast as A, around the same geometric mean."""

    def change(trainer: Trainer) -> None:
        step = trainer._optimizer.step

        def scaled() -> None:
            before = [p.detach().clone() for p in trainer._parameters]
            step()
            with torch.no_grad():
                for k, (p, old) in enumerate(zip(trainer._parameters, before, strict=True)):
                    p.copy_(old + (p - old) * (of_b**0.5 if k % 2 else of_b**-0.5))  # A and B alternate

        trainer._optimizer.step = scaled  # type: ignore[method-assign, assignment]

    return change


def scaled_a(factor: float) -> Change:
    """A starts larger or smaller."""

    def change(trainer: Trainer) -> None:
        with torch.no_grad():
            for p in trainer._parameters[0::2]:
                p.mul_(factor)

    return change


def principal_a(trainer: Trainer) -> None:
    """A starts at the leading principal directions of what enters the adapted layer, at its usual norm."""
    states = torch.cat([b.stored[b.rows, b.columns] for b in trainer._batches]).float()
    directions = torch.linalg.svd(states - states.mean(dim=0), full_matrices=False).Vh
    with torch.no_grad():
        for p in trainer._parameters[0::2]:
            p.copy_(directions[: len(p)] * (p.norm() / len(p) ** 0.5))


def orthogonalised(trainer: Trainer) -> None:
    """Muon: momentum whose singular values are set to one; on rank-one factors that is a normalised step."""
    momenta = [torch.zeros_like(p) for p in trainer._parameters]

    def step() -> None:
        rate = trainer._optimizer.param_groups[0]["lr"]
        with torch.no_grad():
            for p, m in zip(trainer._parameters, momenta, strict=True):
                m.mul_(0.9).add_(p.grad)  # type: ignore[arg-type]
                u, _, vh = torch.linalg.svd(m, full_matrices=False)
                p.sub_(u @ vh, alpha=rate * (p.numel() / len(u[0])) ** 0.5)

    trainer._optimizer.step = step  # type: ignore[method-assign, assignment]


def weighed(weigh: Callable[[Tensor], Tensor]) -> Change:
    """Another weight for each token, from its loss."""

    def change(trainer: Trainer) -> None:
        def weights(losses: TokenLosses, *_: object) -> Tensor:
            return weigh(losses.loss)

        trainer._objective.weights = weights  # type: ignore[method-assign, assignment]

    return change


def ending(release: float, power: float, calm: float, slowest: float) -> Change:
    """Another release point, weight loss^power, and a rate that falls below a share `calm`, to `slowest` of it."""

    def change(trainer: Trainer) -> None:
        weighed(lambda loss: (loss >= -math.log(release)) * loss**power)(trainer)
        rate, passing = trainer.options.learning_rate, -math.log(trainer.options.threshold + trainer.options.margin)

        def falling() -> float:
            share = float((trainer._latest >= passing).float().mean())
            return rate * min(1.0, max(slowest, math.sqrt(share / calm)))

        trainer._rate = falling  # type: ignore[method-assign]

    return change


def second_order(trainer: Trainer) -> None:
    """After 20 steps of Adam, an L-BFGS direction of memory 20 with a fixed step."""
    state: dict[str, nn.Module | torch.optim.Optimizer] = {}
    adam = trainer._optimizer.step

    def step() -> None:
        if trainer._step < 20:
            adam()
            return
        lbfgs = state.setdefault("lbfgs", torch.optim.LBFGS(trainer._parameters, lr=0.3, max_iter=1, history_size=20))
        lbfgs.step(lambda: torch.tensor(float(trainer._latest.mean())))  # type: ignore[union-attr, operator]

    trainer._optimizer.step = step  # type: ignore[method-assign, assignment]


def both(*changes: Change) -> Change:
    """Several changes at once."""

    def change(trainer: Trainer) -> None:
        for one in changes:
            one(trainer)

    return change


def nothing(_: Trainer) -> None:
    """The recipe as it is."""


VARIANTS: dict[str, tuple[float, Method, Change]] = {
    "memft, rate 0.06 (the default)": (0.06, "memft", nothing),
    "rate 0.03": (0.03, "memft", nothing),
    "rate 0.1": (0.1, "memft", nothing),
    "constant rate": (0.06, "memft", constant),
    "betas 0.8, 0.95": (0.06, "memft", betas(0.8, 0.95)),
    "betas 0.9, 0.9": (0.06, "memft", betas(0.9, 0.9)),
    "betas 0.9, 0.99": (0.06, "memft", betas(0.9, 0.99)),
    "betas 0.95, 0.95": (0.06, "memft", betas(0.95, 0.95)),
    "rate 0.1, betas 0.8, 0.95": (0.1, "memft", betas(0.8, 0.95)),
    "rate 0.1, betas 0.8, 0.95, principal": (0.1, "memft", both(betas(0.8, 0.95), principal_a)),
    "rate 0.15, betas 0.8, 0.95": (0.15, "memft", betas(0.8, 0.95)),
    "rate 0.1, betas 0.7, 0.9": (0.1, "memft", betas(0.7, 0.9)),
    "rate 0.1, weight √loss": (0.1, "memft", weighed(lambda loss: (loss >= 0.357) * loss.sqrt())),
    "LoRA+, B 4 times as fast": (0.06, "memft", ratio(4.0)),
    "LoRA+, A 4 times as fast": (0.06, "memft", ratio(0.25)),
    "A starts 4 times as large": (0.06, "memft", scaled_a(4.0)),
    "A starts at a quarter": (0.06, "memft", scaled_a(0.25)),
    "A starts at principal directions": (0.06, "memft", principal_a),
    "orthogonalised, rate 0.02": (0.02, "memft", orthogonalised),
    "orthogonalised, rate 0.06": (0.06, "memft", orthogonalised),
    "L-BFGS after 20 steps": (0.06, "memft", second_order),
    "focal, (1 - p)": (0.06, "memft", weighed(lambda loss: 1 - torch.exp(-loss))),
    "focal, (1 - p)²": (0.06, "memft", weighed(lambda loss: (1 - torch.exp(-loss)) ** 2)),
    "release at 0.9": (0.06, "memft", weighed(lambda loss: (loss >= 0.105).float())),
    "release at 0.52": (0.06, "memft", weighed(lambda loss: (loss >= 0.654).float())),
    "hardest last: weight 1 / (1 + loss)": (0.06, "memft", weighed(lambda loss: (loss >= 0.357) / (1 + loss))),
    "hardest first: weight √loss": (0.06, "memft", weighed(lambda loss: (loss >= 0.357) * loss.sqrt())),
    "ending 0.7, 1, 0.2 to 0.1": (0.06, "memft", ending(0.7, 0.0, 0.2, 0.1)),
    "ending 0.7, 1, 0.2 to 0.2": (0.06, "memft", ending(0.7, 0.0, 0.2, 0.2)),
    "ending 0.7, 1, 0.2 to 0.3": (0.06, "memft", ending(0.7, 0.0, 0.2, 0.3)),
    "ending 0.7, √loss, 0.2 to 0.1": (0.06, "memft", ending(0.7, 0.5, 0.2, 0.1)),
    "ending 0.82, loss, 0.2 to 0.1": (0.06, "memft", ending(0.82, 1.0, 0.2, 0.1)),
    "ending 0.9, √loss, 0.2 to 0.1": (0.06, "memft", ending(0.9, 0.5, 0.2, 0.1)),
    "sft": (0.06, "sft", nothing),
    "memft-ot as published (release at the threshold)": (0.06, "memft-ot", nothing),
    "memft-sw": (0.06, "memft-sw", nothing),
}


def run(base: models.BaseModel, task: str, name: str, seed: int) -> str:
    """What one variant did on one seed."""
    layer, rank, kind, n_passages, n_tokens = TASKS[task]
    rate, method, change = VARIANTS[name]
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
    trainer = Trainer(
        adapted,
        passages,
        TrainingOptions(method=method, learning_rate=rate, max_steps=400 if n_passages == 20 else 200, seed=seed),
    )
    change(trainer)
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
