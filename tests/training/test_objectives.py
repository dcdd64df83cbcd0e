"""Every method ends; mastered passages rest, and a curriculum grows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from support.models import adapter, disturb, passage, random_passages
from support.sites import MLP

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.token_losses import TokenLosses
from lorasize.models import BaseModel
from lorasize.records import StepReport
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.objectives import Objective


class Watched(Objective):
    """Notes which passages a step looks at."""

    looks: list[tuple[int, ...]]

    def weights(self, losses: TokenLosses, passages: Sequence[int], lengths: Sequence[int]) -> Any:
        self.looks[-1] += tuple(passages)
        return super().weights(losses, passages, lengths)


def looks_of(adapted: Any, encoded: Sequence[EncodedPassage], options: TrainingOptions) -> list[tuple[int, ...]]:
    """Train; the passages that each epoch looked at, full looks left out."""
    objective = Watched(options.method, options.passing, many=len(encoded) >= 8)
    objective.looks = []
    trainer = Trainer(adapted, encoded, options, objective=objective)
    list(trainer.steps(lambda: objective.looks.append(())))
    return objective.looks


def mastered_passage(torch: Any, model: Any) -> EncodedPassage:
    """A passage of one target token that the model is sure of before any training."""
    for first in range(3, 400):
        with torch.no_grad():
            p, token = torch.softmax(model(input_ids=torch.tensor([[first, 9]])).logits[0, -1], dim=-1).max(dim=0)
        if float(p) > 0.95:
            return passage((first, 9), (int(token),))
    raise AssertionError("the model is sure of nothing")


@pytest.mark.slow
def test_mastered_passages_rest_and_come_back(torch: Any, bases: dict[str, BaseModel]) -> None:
    """The mastered one is looked at after 2, 4, 8, 8 … epochs, the other in each."""
    base = bases["able"]
    encoded = [mastered_passage(torch, base.model), *random_passages(torch, [(5, 20)])]
    with adapter(base, MLP, 1) as adapted:
        looks = looks_of(adapted, encoded, TrainingOptions(max_steps=40, learning_rate=1e-6))
    rested = [epoch for epoch, passages in enumerate(looks) if 0 in passages]
    stubborn = [epoch for epoch, passages in enumerate(looks) if 1 in passages]
    assert [b - a for a, b in zip(rested, rested[1:], strict=False)] == [4, 8, 8, 8, 8]
    assert stubborn == list(range(stubborn[0], stubborn[0] + 40))


def test_a_passage_that_slipped_is_trained_again(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(4, 4), (5, 8)])
    with adapter(bases["able"], MLP, 8) as adapted:
        trainer = Trainer(adapted, encoded, TrainingOptions(learning_rate=0.03))
        list(trainer.steps())
        disturb(torch, adapted, scale=0.5)
        assert Trainer(adapted, encoded, TrainingOptions()).evaluate().n_below(0.5) > 0
        # the trainer last saw every token pass: only a full look shows that it no longer holds
        again = list(trainer.steps())
    assert again[-1].n_stubborn == 0
    assert again[-1].min_probability > 0.52
    assert len(again) > 1


@pytest.mark.slow
@pytest.mark.parametrize("n_passages", [2, 10])
@pytest.mark.parametrize("method", ["sft", "memft", "memft-ot", "memft-sw"])
def test_every_method_memorises(torch: Any, bases: dict[str, BaseModel], method: Any, n_passages: int) -> None:
    encoded = random_passages(torch, [(5, 4)] * n_passages)
    options = TrainingOptions(method=method, max_steps=400, learning_rate=0.02)
    with adapter(bases["able"], MLP, 8) as adapted:
        last = bounded(Trainer(adapted, encoded, options), 400)[-1]
    assert last.evaluated
    assert last.min_probability > 0.52


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.8])
@pytest.mark.parametrize("method", ["sft", "memft", "memft-ot", "memft-sw"])
def test_no_token_waits_between_release_and_threshold(
    torch: Any, bases: dict[str, BaseModel], method: Any, threshold: float
) -> None:
    """A token that has not passed yet, by the margin alone, must still be trained on."""
    encoded = random_passages(torch, [(5, 4)] * 10)
    options = TrainingOptions(method=method, threshold=threshold, margin=0.1, max_steps=400, learning_rate=0.02)
    with adapter(bases["able"], MLP, 8) as adapted:
        last = bounded(Trainer(adapted, encoded, options), 400)[-1]
    assert last.min_probability > threshold + 0.1


def bounded(trainer: Trainer, max_epochs: int) -> list[StepReport]:
    """The trainer's reports; fails where it turns in circles without a step."""
    n_epochs = itertools.count()

    def count() -> None:
        assert next(n_epochs) < 4 * max_epochs, f"{trainer.state().state['step']} steps: it never ends"

    return list(trainer.steps(count))


@pytest.mark.slow
def test_the_curriculum_trains_a_growing_share(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(5, 30)] * 10)
    with adapter(bases["able"], MLP, 1) as adapted:
        looks = looks_of(adapted, encoded, TrainingOptions(method="memft-sw", max_steps=50, learning_rate=1e-4))
    sizes = [len(passages) for passages in looks]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == [2, 4, 6, 8, 10]
    assert sizes.count(2) == 5


def test_the_published_fall_back_is_for_a_whole_step(torch: Any, bases: dict[str, BaseModel]) -> None:
    """Where anything in a step is stubborn, mastered tokens have no weight, whatever batch they are in."""
    base = bases["able"]
    encoded = [mastered_passage(torch, base.model), *random_passages(torch, [(5, 20)])]
    seen: dict[int, tuple[list[int], int]] = {}
    for batch_tokens in (512, 24):  # both in one step, and a step for each
        options = TrainingOptions(method="memft-ot", batch_tokens=batch_tokens, max_steps=3, learning_rate=1e-6)
        with adapter(base, MLP, 1) as adapted:
            trainer = Trainer(adapted, encoded, options)
            n_stubborn = int((trainer.evaluate().losses[1:] >= -math.log(0.52)).sum())
            reports = list(trainer.steps())[:-1]
            seen[batch_tokens] = sorted(report.n_active for report in reports), trainer.n_read
    # The first full look lets the mastered one rest until the second epoch.
    assert seen[512] == ([n_stubborn] * 3, 20 + (20 + 1) + 20)
    assert seen[24] == ([1, n_stubborn, n_stubborn], 20 + 20 + (1 + 1))  # the paper's: nothing stubborn, so all of it
