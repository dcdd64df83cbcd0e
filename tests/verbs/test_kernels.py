"""What takes longer with a model is said once, and the attention kernel asked for is the one used and recorded."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand
from support.sites import UP

from lorasize import models
from lorasize.artifacts.events import EVENTS, Event, Noted, read_steps
from lorasize.errors import ModelError
from lorasize.losses.frozen_layers import Suffix
from lorasize.recall import decoding
from lorasize.records import Escalation
from lorasize.report import Progress
from lorasize.report.facts.recall import memorization_facts
from lorasize.training.run import ApplyOptions, Loading
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.verify import verify

pytestmark = pytest.mark.usefixtures("_same_process")

BARE = PlanOptions(rank=8, max_drift=math.inf)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three records, 40 tokens or so."""
    return write_records(tmp_path / "corpus.jsonl", RECORDS)


@pytest.fixture
def _not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entered above its frozen layers, every model gives something else than itself."""
    run = Suffix.run
    monkeypatch.setattr(
        Suffix, "run",
        lambda self, ids, stored: (1.0 if self.first is None else 1.05) * run(self, ids, stored),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("_not_entered")
def test_what_takes_longer_is_said_once_by_apply(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although every growth of the adapter begins anew."""
    monkeypatch.setattr("lorasize.training.run.PATIENCE", 5)
    events: list[Event] = []
    more = [(f"Berth {n}:", f" {n * 7919}") for n in range(30, 34)]
    corpus = write_records(tmp_path / "long.jsonl", [*RECORDS, *more])
    made = plan_by_hand(able_llama, corpus, UP, 1)
    done = apply(made, tmp_path / "out", ApplyOptions(device="cpu"), events.append).memorization
    (note,) = [event.message for event in events if isinstance(event, Noted)]
    assert [event for event in events if isinstance(event, Escalation)]
    assert done.proven
    assert done.notes == (note,)
    assert ("note", note) in list(memorization_facts(done))
    lines = [json.loads(line) for line in (tmp_path / "out" / EVENTS).read_text("utf-8").splitlines()]
    assert [line["message"] for line in lines if line["event"] == "noted"] == [note]
    assert len(read_steps(tmp_path / "out" / EVENTS)) >= done.steps


def test_a_note_stays_on_the_screen() -> None:
    stream = io.StringIO()
    with Progress(stream=stream) as progress:
        progress.event(Noted("LlamaForCausalLM: all of it is run"))
    assert stream.getvalue() == "LlamaForCausalLM: all of it is run\n"


@pytest.mark.usefixtures("_not_entered")
def test_plan_warns_of_it(able_llama: Path, corpus: Path) -> None:
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=BARE).plan
    assert len([w for w in made.warnings if w.startswith("LlamaForCausalLM: entered above its frozen layers")]) == 1


def test_plan_warns_of_nothing_where_the_model_is_entered(able_llama: Path, corpus: Path) -> None:
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=BARE).plan
    assert [w for w in made.warnings if w.startswith("LlamaForCausalLM")] == []
    assert made.model.attn is None


@pytest.mark.slow
@pytest.mark.parametrize("asked_of", ["plan", "apply"])
def test_the_kernel_asked_for_is_trained_and_proven_with(
    able_llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_of: str
) -> None:
    used: list[str] = []
    load = models.ModelFolder.load

    def watched(*given: Any) -> Any:
        base = load(*given)
        used.append(base.attn)
        return base

    monkeypatch.setattr(models.ModelFolder, "load", watched)
    asked = {"plan": "auto", "apply": "auto"} | {asked_of: "eager"}
    options = BARE
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", attn=asked["plan"], options=options).plan
    assert made.model.attn == (None if asked_of == "apply" else "eager")
    done = apply(made, tmp_path / "out", ApplyOptions(device="cpu", loading=Loading(asked["apply"]))).memorization
    assert used == ["sdpa" if asked_of == "apply" else "eager", "eager"]
    assert done.recall.attn_implementation == "eager"
    assert verify(tmp_path / "out", device="cpu").attn_implementation == "sdpa"  # auto: the best that it has


def test_a_kernel_that_is_not_there_is_named(able_llama: Path, corpus: Path) -> None:
    with pytest.raises(ModelError, match="attention flash_attention_2 cannot be used here"):
        sizing.plan([corpus], ref=str(able_llama), device="cpu", attn="flash_attention_2")


@pytest.mark.slow
def test_where_padding_matters_prompts_are_decoded_one_at_a_time(
    able_llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = apply(plan_by_hand(able_llama, corpus, UP, 8), tmp_path / "out", ApplyOptions(device="cpu"))
    together = verify(tmp_path / "out", done.encoded, device="cpu", batch_size=3)
    assert (together.batch_size, together.warnings) == (3, ())
    monkeypatch.setattr(decoding, "_pads", lambda *_: False)
    alone = verify(tmp_path / "out", done.encoded, device="cpu", batch_size=3)
    (said,) = alone.warnings
    assert "decoded one at a time" in said
    assert (alone.batch_size, alone.recalled, alone.changed_files) == (1, True, ())
    assert verify(tmp_path / "out", done.encoded, device="cpu").warnings == ()  # not asked for
