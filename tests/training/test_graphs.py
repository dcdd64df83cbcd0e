"""Recorded passes, without a card: what would be recorded is run instead, and compared with a pass that is not padded.

Tolerances as in test_fast_path.py: the same float32 operations in another order.
"""

from __future__ import annotations

from typing import Any

import pytest
from support.models import adapter, disturb, random_passages

from lorasize.losses import head
from lorasize.models import BaseModel, adapters
from lorasize.models.packing import never_packed
from lorasize.records import Site
from lorasize.training import Trainer, TrainingOptions, graphs
from lorasize.training.graphs import Graphs, Recording

SIZES = [(5, 12), (1, 3), (9, 30), (2, 1), (4, 30)]
MIDDLE = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))


class Played:
    """In place of a CUDA graph: runs the pass again, and writes to the same places."""

    def __init__(self, owner: Graphs, recording: Recording) -> None:
        self.owner, self.recording, self.n = owner, recording, 0

    def replay(self) -> None:
        self.n += 1
        self.recording.seen, self.recording.gradients = self.owner._pass(self.recording)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[Played]:
    """Every pass that is recorded, in order; shapes are recorded on the CPU as on a card."""
    made: list[Played] = []

    def recorded(self: Graphs, shape: tuple[int, int, int], batch: Any) -> Recording:
        recording = Recording.for_shape(shape, batch, self._path.head)
        recording.graph = Played(self, recording)
        made.append(recording.graph)
        return recording

    monkeypatch.setattr(Graphs, "_recorded", recorded)
    return made


def on_a_card(trainer: Trainer) -> Trainer:
    """The trainer as it would be on a card."""
    trainer._passes.whole_batches = True
    return trainer


@pytest.mark.parametrize(("name", "module"), [("llama", "up_proj"), ("gpt2", "c_fc")])
@pytest.mark.parametrize("method", ["memft", "sft", "memft-ot"])
@pytest.mark.parametrize("chunk_bytes", [0, 2**28])
def test_a_recorded_pass_gives_the_losses_weights_and_gradients_of_a_plain_one(
    torch: Any, bases: dict[str, BaseModel], played: list[Played], monkeypatch: pytest.MonkeyPatch,
    name: str, module: str, method: Any, chunk_bytes: int,
) -> None:  # fmt: skip
    """In one chunk of the head's logits, or in several: 16 tokens at a time."""
    monkeypatch.setattr(head, "_CHUNK_BYTES", chunk_bytes)
    site = Site(target_modules=(module,), layers_to_transform=(1, 2))
    with adapter(bases[name], site, 2) as adapted:
        disturb(torch, adapted)
        trainer = Trainer(adapted, random_passages(torch, SIZES), TrainingOptions(method=method, batch_tokens=100))
        passes, found = trainer._passes, list(adapters.parameters(adapted).values())
        for batch in trainer._path.batches:
            with trainer._path.suffix.entered():
                plain, wanted = passes.learn(batch, None), [p.grad.clone() for p in found]
                adapted.zero_grad()
                passes.whole_batches = True
                looked, gradients = passes.learn(batch, 0), [p.grad.clone() for p in found]
            adapted.zero_grad()
            passes.whole_batches = False
            assert torch.allclose(looked.losses.loss, plain.losses.loss, atol=1e-5)
            assert torch.allclose(looked.weights, plain.weights, atol=1e-5)
            assert torch.equal(looked.losses.correct, plain.losses.correct)
            for one, other in zip(gradients, wanted, strict=True):
                assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    assert len(played) == len({(g.recording.ids.shape, g.recording.targets.shape) for g in played})


def test_training_by_recorded_passes_holds_every_token(
    torch: Any, bases: dict[str, BaseModel], played: list[Played]
) -> None:
    """Batches stay whole, so that a shape is recorded once however many passages rest."""
    with adapter(bases["able"], MIDDLE, 8) as adapted:
        options = TrainingOptions(learning_rate=0.03, batch_tokens=60)
        trainer = on_a_card(Trainer(adapted, random_passages(torch, [(4, 6), (3, 9), (5, 30)]), options))
        *_, last = trainer.steps()
        assert last.n_stubborn == 0
        assert trainer.passed
        assert 0 < len(played) <= len(trainer._path.batches)
        assert sum(g.n for g in played) >= last.step


def test_a_shape_is_padded_no_further_than_the_longest_passage(
    torch: Any, bases: dict[str, BaseModel], played: list[Played]
) -> None:
    """A model with a table of positions has no more of them."""
    with adapter(bases["llama"], MIDDLE, 1) as adapted:
        trainer = on_a_card(Trainer(adapted, random_passages(torch, [(5, 30), (2, 10)]), TrainingOptions()))
        assert [trainer._passes.graphs._shape(b) for b in trainer._path.batches] == [(1, 34, 64), (1, 32, 64)]


def test_what_cannot_be_recorded_is_run_step_by_step(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large batches are not tried, nor more than a few shapes; one that failed is not tried again."""
    tried: list[Any] = []
    monkeypatch.setattr(Graphs, "_recorded", lambda self, shape, batch: tried.append(shape))
    with adapter(bases["llama"], MIDDLE, 1) as adapted:
        trainer = on_a_card(Trainer(adapted, random_passages(torch, SIZES), TrainingOptions(batch_tokens=40)))
        batches, recordings = trainer._path.batches, trainer._passes.graphs
        assert [recordings.run(batch) for batch in batches for _ in range(2)] == [None] * (2 * len(batches))
        assert len(tried) == len(set(tried)) > 1
        monkeypatch.setattr(graphs, "_MOST_POSITIONS", 1)
        monkeypatch.setattr(recordings, "_held", {})
        before = len(tried)
        assert recordings.run(batches[0]) is None
        assert len(tried) == before
        report = next(trainer.steps())
    assert report.n_active > 0


def test_a_curriculum_and_a_window_are_not_recorded(torch: Any, bases: dict[str, BaseModel]) -> None:
    with adapter(bases["llama"], MIDDLE, 1) as adapted:
        encoded = random_passages(torch, SIZES)
        trained = {method: Trainer(adapted, encoded, TrainingOptions(method=method)) for method in METHODS}
    per_token = {method: trainer._passes.objective.per_token for method, trainer in trained.items()}
    assert per_token == {"memft": True, "sft": True, "memft-ot": True, "memft-sw": False}


METHODS: Any = ("memft", "sft", "memft-ot", "memft-sw")


def test_transformers_asks_nobody_while_a_pass_is_recorded(torch: Any) -> None:
    from transformers import masking_utils

    own, two_passages = masking_utils.find_packed_sequence_indices, torch.tensor([[0, 1, 0, 1]])
    with never_packed():
        assert masking_utils.find_packed_sequence_indices(two_passages) is None
    assert masking_utils.find_packed_sequence_indices is own
    assert own(two_passages).tolist() == [[0, 0, 1, 1]]
