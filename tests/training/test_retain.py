"""Text that training must not harm: the drift that is measured, the pull against autograd, and a bound that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import TRAINING_TEXT, plan_by_hand
from support.sites import MLP

from lorasize import cli, models
from lorasize.artifacts.plans import write_plan
from lorasize.errors import CorpusError
from lorasize.losses.base import base_losses
from lorasize.losses.head import Head
from lorasize.losses.neutral import windows
from lorasize.losses.token_losses import divergence_and_gradient
from lorasize.models import BaseModel, adapters
from lorasize.records import Outcome
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.retain import Retained
from lorasize.training.run import ApplyOptions, Session
from lorasize.verbs.apply import apply, retained_text

pytestmark = pytest.mark.usefixtures("_same_process")

RECORDS = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 9)]
OTHER = TRAINING_TEXT * 3


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    return models.load(str(able_llama), device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    return path


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_pull_is_the_gradient_of_the_divergence(torch: Any, softcap: float | None, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, base = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    hidden = (base + 0.3 * torch.randn(30, 8, generator=generator)).requires_grad_(True)

    def logits(states: Any) -> Any:
        found = states @ weight.t() * scale
        return found if softcap is None else softcap * torch.tanh(found / softcap)

    wanted = torch.nn.functional.kl_div(
        torch.log_softmax(logits(hidden), -1), torch.log_softmax(logits(base), -1), reduction="sum", log_target=True
    )
    (gradient,) = torch.autograd.grad(wanted, hidden)
    total, found = divergence_and_gradient(Head(weight, None, softcap, scale), hidden.detach(), base)
    assert total == pytest.approx(float(wanted.detach()), rel=1e-4)  # most of a sum of terms of both signs cancels
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)
    nothing, flat = divergence_and_gradient(Head(weight, None, softcap, scale), base, base)
    assert nothing == pytest.approx(0.0, abs=1e-4)
    assert float(flat.abs().max()) < 1e-5


def test_windows_cover_a_short_text_and_spread_over_a_long_one(base: BaseModel) -> None:
    ids = list(base.tokenizer(OTHER, add_special_tokens=False).input_ids)
    found = windows(OTHER, base.tokenizer, 255, base.n_ids)
    assert sum(one.n_tokens for one in found) in (len(ids) - 1, len(ids) - 2)  # a window of one token predicts nothing
    assert list(found[0].prompt_ids + found[0].target_ids) == ids[: 1 + found[0].n_tokens]
    long = windows(OTHER * 60, base.tokenizer, 255, base.n_ids)
    assert sum(one.n_tokens for one in long) <= 2048
    assert long[-1].target_ids == windows(OTHER * 60 + "", base.tokenizer, 255, base.n_ids)[-1].target_ids
    assert windows("", base.tokenizer, 255, base.n_ids) == []


def test_drift_is_what_the_plain_model_says(torch: Any, base: BaseModel, encode_text: Any) -> None:
    text = windows(OTHER, base.tokenizer, 255, base.n_ids)
    before = float(torch.cat(base_losses(base, text)).mean())
    adapted = adapters.attach(base.model, MLP, 2, 0)
    try:
        trainer = Trainer(adapted, encode_text("One line."), TrainingOptions(max_steps=3), text)
        assert trainer.retained is not None
        assert trainer.retained.base_loss == pytest.approx(before, abs=1e-4)
        assert trainer.retained.measure() == pytest.approx(0.0, abs=1e-5)
        list(trainer.steps())
        now = float(torch.cat(base_losses(base, text)).mean())  # the adapter is in it
        assert trainer.retained.state.drift == pytest.approx(now - before, abs=1e-4)
        assert abs(trainer.retained.state.drift) > 1e-3
        again = Trainer(adapted, encode_text("One line."), TrainingOptions(max_steps=3), text)
        assert again.retained is not None
        assert again.retained.base_loss == pytest.approx(before, abs=1e-4)  # measured without the adapter
    finally:
        adapters.detach(adapted)


def trained(base: BaseModel, model: Path, corpus: Path, bound: float | None, **options: Any) -> Session:
    plan = plan_by_hand(model, corpus, MLP, 4)
    from lorasize.verbs.apply import load_inputs

    _, encoded = load_inputs(plan, "cpu")
    how = ApplyOptions(device="cpu", max_drift=bound, **options)
    run = Session(base=base, encoded=encoded, plan=plan, options=how, retained=OTHER)
    run.run()
    adapters.detach(run.adapted)
    return run


@pytest.mark.slow
def test_a_bound_is_kept_and_everything_memorised(base: BaseModel, able_llama: Path, corpus: Path) -> None:
    free = trained(base, able_llama, corpus, None).state
    assert free.drift is not None
    assert free.outcome is Outcome.MEMORIZED
    bound = free.drift.nats / 4
    assert bound > 0.01  # else there is nothing to keep
    bounded = trained(base, able_llama, corpus, bound).state
    assert bounded.drift is not None
    assert bounded.outcome is Outcome.MEMORIZED
    assert bounded.drift.nats <= bound
    assert bounded.drift.bound == bound


@pytest.fixture
def _harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is trained, other text loses 0.3 nats per token."""

    def measure(self: Retained) -> float:
        self.state.drift = 0.3
        return 0.3

    monkeypatch.setattr(Retained, "measure", measure)


@pytest.mark.slow
@pytest.mark.usefixtures("_harmful")
def test_a_bound_that_cannot_be_kept_is_a_result(base: BaseModel, able_llama: Path, corpus: Path) -> None:
    run = trained(base, able_llama, corpus, 0.2, max_steps=40)
    assert run.state.outcome is Outcome.STEP_BUDGET_EXHAUSTED
    assert run.final.min_probability > 0.52  # every token passed, and it was not enough
    assert run.state.drift is not None
    assert run.state.drift.broken
    assert run.state.steps == 40


@pytest.mark.slow
@pytest.mark.usefixtures("_harmful")
def test_apply_records_drift_and_ends_with_4_when_it_is_too_large(
    able_llama: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    record = apply(plan, tmp_path / "free", ApplyOptions(device="cpu")).memorization
    assert record.drift is not None  # on the neutral text
    assert record.drift.bound is None
    assert (record.drift.nats, record.drift.after - record.drift.before) == pytest.approx((0.3, 0.3))
    assert record.proven
    write_plan(plan, tmp_path / "p.json")
    (tmp_path / "other.txt").write_text(OTHER, "utf-8")
    line = "apply p.json --device cpu --retain other.txt --max-drift 0.2 --max-steps 40 --no-learn -q"
    assert cli.main(line.split()) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("NOT MEMORIZED: other text lost 0.300 nats per token")
    assert "at most +0.200 asked" in said


def test_a_single_token_cannot_be_retained(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """There is nothing to measure: a bound on it would always be kept."""
    (tmp_path / "a.txt").write_text("a", "utf-8")
    plan = plan_by_hand(able_llama, corpus, MLP, 4)
    options = ApplyOptions(device="cpu", retain=tmp_path / "a.txt", max_drift=0.01)
    with pytest.raises(CorpusError, match="holds a single token"):
        apply(plan, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_text_that_cannot_be_retained(tmp_path: Path) -> None:
    assert len(retained_text(None)) > 1000
    for data, said in ((b"\xff", "not UTF-8"), (b" \n", "holds no text"), (None, "there is no such file")):
        path = tmp_path / "text"
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(CorpusError, match=said):
            retained_text(path)
