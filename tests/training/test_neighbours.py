"""Text like the corpus: the base model's own continuations of its first words, and what an adapter does to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import plan_by_hand
from transformers import GenerationConfig

from lorasize import models
from lorasize.losses.base import base_losses
from lorasize.models import BaseModel, adapters
from lorasize.records import Drift, Site
from lorasize.training import neighbours
from lorasize.training.run import ApplyOptions, Session
from lorasize.training.trainer import Trainer, TrainingOptions
from lorasize.verbs.apply import load_inputs

MLP = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))
NOTHING = Drift(before=0.0, after=0.0, nats=0.0)


@pytest.fixture(scope="module")
def base(able_llama: Path) -> BaseModel:
    return models.load(str(able_llama), device="cpu", dtype="float32")


def test_it_is_text_of_the_base_model_and_moves_with_the_adapter(base: BaseModel, encode_text: Any) -> None:
    """The loss before is the base's, the loss after that of the adapted model, on the same continuations."""
    encoded = encode_text("One line that is long enough to begin with eight tokens and more.")
    adapted = adapters.attach(base.model, MLP, 2, 0)
    try:
        trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=20))

        def seen() -> Drift:
            return neighbours.with_neighbours(NOTHING, base, adapted, encoded, trainer.path)

        first, again = seen().neighbours, seen().neighbours
        assert first is not None
        assert first == again  # the same continuations
        assert first.after == pytest.approx(first.before, abs=1e-5)
        assert first.unchanged == 1.0
        list(trainer.steps())
        trained = seen().neighbours
        assert trained is not None
        assert trained.before == pytest.approx(first.before, abs=1e-4)  # drawn without the adapter
        assert trained.divergence > 1e-3
        assert trained.unchanged < 1.0
    finally:
        adapters.detach(adapted)


def test_it_is_drawn_whatever_the_models_own_settings_say(base: BaseModel, encode_text: Any) -> None:
    """Those would forbid tokens; they are the model's again afterwards."""
    encoded = encode_text("One line that is long enough to begin with eight tokens and more.")
    adapted = adapters.attach(base.model, MLP, 2, 0)
    own = base.model.generation_config
    try:
        path = Trainer(adapted, encoded, TrainingOptions(max_steps=1)).path
        free = neighbours.with_neighbours(NOTHING, base, adapted, encoded, path)
        base.model.generation_config = forbidding = GenerationConfig(suppress_tokens=list(range(5, 390)))
        assert neighbours.with_neighbours(NOTHING, base, adapted, encoded, path) == free
        assert base.model.generation_config is forbidding
    finally:
        base.model.generation_config = own
        adapters.detach(adapted)


def test_a_passage_begins_without_its_address_and_a_short_one_with_it(base: BaseModel, encode_text: Any) -> None:
    (long,) = encode_text("One line that is long enough to begin with eight tokens and more.")
    start = list(base.tokenizer("").input_ids)
    assert neighbours._begins(base, [long]) == [start + list(long.target_ids[:8])]
    short = long.__class__(long.passage, long.prompt_ids, long.target_ids[-3:])
    (begun,) = neighbours._begins(base, [short, short])
    assert begun == list((long.prompt_ids + short.target_ids)[: len(start) + 8])
    assert neighbours._begins(base, [long.__class__(long.passage, (1,), (2, 3))]) == []


def test_apply_tells_it_under_no_bound(base: BaseModel, able_llama: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "page.md"
    corpus.write_text("The harbour opens at six and closes when the lamp on the pier goes out.\n", "utf-8")
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    _, encoded = load_inputs(plan, "cpu")
    run = Session(base=base, encoded=encoded, plan=plan, options=ApplyOptions(device="cpu", max_steps=30))
    run.run()
    adapters.detach(run.adapted)
    drift = run.state.drift
    assert drift is not None
    assert drift.neighbours is not None
    assert drift.neighbours.kind == "text like the corpus"
    assert drift.neighbours not in drift.texts  # so that no bound is on it
    assert drift.neighbours.before < float(base_losses(base, encoded)[0].mean())  # its own words are likelier to it
