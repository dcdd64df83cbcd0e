"""Every method ends; mastered passages rest, and a curriculum grows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from support.models import adapter, disturb, passage, random_passages
from support.sites import MLP

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import Batch
from lorasize.models import BaseModel
from lorasize.records import StepReport
from lorasize.training import Trainer, TrainingOptions


def watch(trainer: Trainer) -> list[tuple[int, tuple[int, ...]]]:
    """Grows as the trainer looks at passages: (epoch, passages looked at), full looks left out."""
    looks: list[tuple[int, tuple[int, ...]]] = []
    due = trainer._due_part

    def watched(batch: Batch) -> Batch | None:
        part = due(batch)
        if part is not None:
            looks.append((trainer._epoch, part.passages))
        return part

    trainer._due_part = watched  # type: ignore[method-assign]
    return looks


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
        trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=40, learning_rate=1e-6))
        looks = watch(trainer)
        list(trainer.steps())
    rested = [epoch for epoch, passages in looks if 0 in passages]
    stubborn = [epoch for epoch, passages in looks if 1 in passages]
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
    looks: Callable[[Batch], Batch | None] = trainer._due_part

    def counted(batch: Batch) -> Batch | None:
        assert trainer._epoch < 4 * max_epochs, f"{trainer._epoch} epochs, {trainer._step} steps: it never ends"
        return looks(batch)

    trainer._due_part = counted  # type: ignore[method-assign]
    return list(trainer.steps())


@pytest.mark.slow
def test_the_curriculum_trains_a_growing_share(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(5, 30)] * 10)
    with adapter(bases["able"], MLP, 1) as adapted:
        trainer = Trainer(adapted, encoded, TrainingOptions(method="memft-sw", max_steps=50, learning_rate=1e-4))
        looks = watch(trainer)
        list(trainer.steps())
    sizes = [len(passages) for _, passages in looks]
    assert sizes == sorted(sizes)
    assert sorted(set(sizes)) == [2, 4, 6, 8, 10]
    assert sizes.count(2) == 5


def test_the_published_fall_back_is_for_a_whole_step(torch: Any, bases: dict[str, BaseModel]) -> None:
    """Where anything in a step is stubborn, mastered tokens have no weight, whatever batch they are in."""
    base = bases["able"]
    encoded = [mastered_passage(torch, base.model), *random_passages(torch, [(5, 20)])]
    with adapter(base, MLP, 1) as adapted:
        trainer = Trainer(adapted, encoded, TrainingOptions(method="memft-ot"))
        mastered, stubborn = sorted(trainer._batches, key=lambda batch: len(batch.targets))
        assert (mastered.passages, stubborn.passages) == ((0,), (1,))
        trainer.evaluate()
        n_stubborn = int((trainer._latest[1:] >= -math.log(0.52)).sum())
        assert trainer._update([mastered, stubborn]) == n_stubborn
        assert trainer._update([mastered]) == 1  # the paper's: nothing stubborn, so all of it
        assert trainer.n_read == 1 + 20 + 1 + 1
