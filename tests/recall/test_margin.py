"""The margin of training follows what decoding is measured to need, and never costs an adapter that was proven."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import plan_by_hand
from support.runs import Killed, same_adapter
from support.sites import MLP

from lorasize import cli, models
from lorasize.artifacts.events import Raised
from lorasize.losses.frozen_layers import Suffix, suffix_of
from lorasize.models import adapters
from lorasize.records import Plan, RecallReport, StepReport
from lorasize.training import Trainer, TrainingOptions
from lorasize.training import run as session
from lorasize.training.run import ApplyOptions
from lorasize.verbs import apply as verb
from lorasize.verbs.apply import apply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_same_process")]

RECORDS = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 6)]


@pytest.fixture
def plan(able_llama: Path, tmp_path: Path) -> Plan:
    """A plan whose adapter holds the records."""
    corpus = tmp_path / "c.jsonl"
    corpus.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    return plan_by_hand(able_llama, corpus, MLP, 4)


@pytest.fixture
def _slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps so small that training ends just above what was asked for; large ones end anywhere, as rounding has it."""
    monkeypatch.setattr(session, "TrainingOptions", functools.partial(TrainingOptions, learning_rate=0.002))


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`coarse(gap)`: from now on decoding is measured to shift ln p by so much, as coarse arithmetic does."""
    plain = verb.decode_and_compare

    def set_gap(gap: float) -> None:
        def measured(*args: Any, **kwargs: Any) -> Any:
            return plain(*args, **kwargs).model_copy(update={"decoding_gap": gap})

        monkeypatch.setattr(verb, "decode_and_compare", measured)

    return set_gap


def test_float32_needs_no_more(plan: Plan, tmp_path: Path) -> None:
    events: list[Any] = []
    record = apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), events.append).memorization
    assert (record.proven, record.margin) == (True, 0.02)
    assert not any(isinstance(event, Raised) for event in events)
    assert record.recall.min_probability is not None
    assert record.recall.min_probability > 0.52 - 1e-4
    assert record.recall.decoding_gap is not None
    assert record.recall.decoding_gap < 1e-3


@pytest.mark.usefixtures("_slowly")
def test_a_wide_gap_is_trained_for(plan: Plan, tmp_path: Path, coarse: Callable[[float], None]) -> None:
    usual = apply(plan, tmp_path / "usual", ApplyOptions(device="cpu")).memorization
    coarse(0.5)
    events: list[Any] = []
    record = apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), events.append).memorization
    raised = [event for event in events if isinstance(event, Raised)]
    assert record.proven
    assert record.recall.min_probability is not None
    assert record.recall.min_probability > 0.5 * math.exp(0.5)  # still above ½ when ln p falls by the gap
    assert raised
    assert (raised[-1].gap, record.margin) == (0.5, pytest.approx(raised[-1].to - 0.5))
    assert record.steps > usual.steps
    steps = [event.step for event in events if isinstance(event, StepReport)]
    assert steps == sorted(steps)
    log = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text("utf-8").splitlines()]
    assert sum(line["event"] == "raised" for line in log) == len(raised)


def test_a_margin_that_was_asked_for_is_kept(plan: Plan, tmp_path: Path, coarse: Callable[[float], None]) -> None:
    coarse(0.5)
    record = apply(plan, tmp_path / "out", ApplyOptions(device="cpu", margin=0.03)).memorization
    assert (record.proven, record.margin) == (True, 0.03)


@pytest.mark.usefixtures("_slowly")
def test_an_adapter_that_cannot_do_more_stays_as_it_was(
    torch: Any, plan: Plan, tmp_path: Path, coarse: Callable[[float], None]
) -> None:
    usual = apply(plan, tmp_path / "usual", ApplyOptions(device="cpu")).memorization
    coarse(5.0)  # no p can fall by so much and stay above ½
    limit = ApplyOptions(device="cpu", max_steps=usual.steps + 3)
    record = apply(plan, tmp_path / "out", limit).memorization
    assert record.proven
    assert record.steps == usual.steps + 3
    assert same_adapter(torch, tmp_path / "usual", tmp_path / "out")
    assert record.min_probability == usual.min_probability
    assert record.margin == 0.02


@pytest.mark.usefixtures("_slowly")
@pytest.mark.parametrize("limit", [3, 1000])
def test_a_kill_while_training_on_changes_nothing(
    torch: Any, plan: Plan, tmp_path: Path, coarse: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(session, "CHECKPOINT_SHARE", 0.0)
    usual = apply(plan, tmp_path / "usual", ApplyOptions(device="cpu")).memorization
    coarse(0.5)
    options = ApplyOptions(device="cpu", max_steps=usual.steps + limit)
    whole = apply(plan, tmp_path / "whole", options)
    at = usual.steps + 3

    def listen(event: Any) -> None:
        if isinstance(event, StepReport) and event.step >= at and not event.evaluated:
            raise Killed

    with pytest.raises(Killed):
        apply(plan, tmp_path / "cut", options, listen)
    again: list[int] = []
    done = apply(plan, tmp_path / "cut", options, lambda e: again.append(e.step) if isinstance(e, StepReport) else None)
    assert again[0] >= at - 1  # what was kept is not trained again
    assert same_adapter(torch, tmp_path / "whole", tmp_path / "cut")
    left, right = (run.memorization.model_dump(exclude={"seconds", "tokens_per_second"}) for run in (whole, done))
    assert left == right
    assert [s.step for s in done.steps] == [s.step for s in whole.steps]


def test_a_plan_for_a_merged_model_is_proven_merged(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasize.planning import serving

    assert plan.adapter is not None
    merged = plan.model_copy(update={"serving": serving(plan.adapter, "merged")})
    record = apply(merged, tmp_path / "out", ApplyOptions(device="cpu")).memorization
    assert record.proven
    assert record.recall.merged
    assert not verb.apply(plan, tmp_path / "plain", ApplyOptions(device="cpu")).memorization.recall.merged
    for folder, options, expected in (("out", [], True), ("out", ["--no-merged"], False), ("plain", [], False)):
        assert cli.main(["verify", str(tmp_path / folder), "--device", "cpu", "-q", "--report", "json", *options]) == 0
        assert RecallReport.model_validate_json(capsys.readouterr().out).merged is expected


def test_bfloat16_is_served_above_the_threshold(plan: Plan, tmp_path: Path) -> None:
    """In bfloat16 the served model's p differs from training's; what it says is what has to pass."""
    coarse = plan.model_copy(update={"model": plan.model.model_copy(update={"dtype": "bfloat16"})})
    record = apply(coarse, tmp_path / "out", ApplyOptions(device="cpu")).memorization
    assert record.proven
    assert record.recall.dtype == "bfloat16"
    assert record.recall.decoding_gap is not None
    assert record.recall.min_probability is not None
    assert record.recall.min_probability > 0.5 * math.exp(record.recall.decoding_gap)


def test_a_trained_adapter_is_entered_like_a_fresh_one(
    torch: Any, able_llama: Path, encode_text: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coarse arithmetic below a trained adapter comes out of it enlarged, which is no reason to leave the fast path."""
    run, seed = Suffix.run, torch.Generator().manual_seed(1)

    def noisy(self: Suffix, ids: Any, stored: Any) -> Any:
        if stored is not None:
            stored = stored * (1 + 1e-3 * torch.randn(stored.shape, generator=seed))
        return run(self, ids, stored)

    monkeypatch.setattr(Suffix, "run", noisy)
    base = models.load(str(able_llama), device="cpu")
    encoded = encode_text("\n\n".join(f"{p}{t} until the end of this line" for p, t in RECORDS * 4))
    adapted = adapters.attach(base.model, MLP, 2, 0)
    with torch.no_grad():
        for parameter in adapters.parameters(adapted).values():
            parameter.copy_(torch.randn(parameter.shape, generator=seed))
    assert Trainer(adapted, encoded, TrainingOptions(max_steps=1)).notes == ()
    first = adapters.first_adapted_layer(adapted)
    ids = torch.tensor([encoded[0].prompt_ids + encoded[0].target_ids])
    in_place = suffix_of(adapters.base_of(adapted), first, ids)  # what it said with the adapter in place
    assert in_place.first is None
    adapters.detach(adapted)
