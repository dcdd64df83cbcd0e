"""Memory that does not suffice, and a loss that is not a number: training goes on, or says why it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import models
from lorasize.errors import ModelError, TrainingDivergedError
from lorasize.losses.batches import make_batches
from lorasize.losses.frozen_layers import Suffix
from lorasize.models import BaseModel, adapters
from lorasize.records import Outcome
from lorasize.training import Checkpoint, Trainer, TrainingOptions
from lorasize.training import run as session
from lorasize.training import trainer as loop
from lorasize.training.pieces import Pieces
from lorasize.training.run import ApplyOptions, Session
from lorasize.verbs.apply import load_inputs

RECORDS = [(f"{i}:", f" {i * 7919 % 9973}") for i in range(1, 13)]


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    return models.load(str(able_llama), device="cpu")


@pytest.fixture
def encoded(able_llama: Path, tmp_path: Path) -> Any:
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    plan = plan_by_hand(able_llama, path, MLP, 4)
    return plan, load_inputs(plan, "cpu")[1]


def scarce(monkeypatch: pytest.MonkeyPatch, torch: Any, room: int) -> list[int]:
    """Let the model's layers take no more than `room` positions; the sizes asked for."""
    sizes: list[int] = []
    plain = Suffix.run

    def run(self: Suffix, ids: Any, stored: Any) -> Any:
        sizes.append(ids.numel())
        if ids.numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, ids, stored)

    monkeypatch.setattr(Suffix, "run", run)
    return sizes


def train(base: BaseModel, encoded: Any, steps: int) -> tuple[list[float], list[Any]]:
    """The loss before each step and after the last, and the gradients of the first step."""
    adapted, gradients = adapters.attach(base.model, MLP, 4, 0), []
    try:
        trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=steps))
        trainer._optimizer.register_step_pre_hook(
            lambda adam, *_: gradients.append([p.grad.clone() for p in adam.param_groups[0]["params"]])
        )
        return [report.loss for report in trainer.steps()], gradients[0]
    finally:
        adapters.detach(adapted)


def test_a_batch_too_large_is_halved_with_the_same_result(
    torch: Any, base: BaseModel, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "has_coarse_products", lambda device: False)  # whose rounding hides the comparison
    plenty, gradients = train(base, encoded[1], 6)
    whole = max(len(p.prompt_ids) + p.n_tokens - 1 for p in encoded[1]) * len(encoded[1])
    with monkeypatch.context() as patch:
        sizes = scarce(patch, torch, whole // 3)
        found, halved = train(base, encoded[1], 6)
    for gradient, same in zip(gradients, halved, strict=True):  # sums of float32 in another order
        torch.testing.assert_close(same, gradient, rtol=0.0, atol=1e-4 * float(gradient.abs().max()))
    assert found[0] == pytest.approx(plenty[0], rel=1e-5)
    assert found == pytest.approx(plenty, rel=1e-2)  # Adam's steps are as large where those sums are nearly zero
    refused = [n for n in sizes if n > whole // 3]
    assert 1 <= len(refused) <= 4  # it is remembered, not found out anew at every step
    assert len(sizes) > 20


def test_one_passage_too_large_is_an_error_that_says_so(
    torch: Any, base: BaseModel, encode_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = encode_text("One line of text that is longer than the sixteen positions which are tried beforehand.")
    scarce(monkeypatch, torch, 16)
    with pytest.raises(ModelError, match=r"out of memory on one passage of \d+ positions"):
        train(base, passages, 3)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    base: BaseModel, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted = adapters.attach(base.model, MLP, 4, 0)
    try:
        trainer = Trainer(adapted, encoded[1], TrainingOptions(max_steps=3))
        monkeypatch.setattr(Suffix, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
        with pytest.raises(RuntimeError, match="shape mismatch"):
            trainer.evaluate()
    finally:
        adapters.detach(adapted)


def test_gradients_of_a_broken_backward_pass_are_taken_back(torch: Any, base: BaseModel, encoded: Any) -> None:
    adapted = adapters.attach(base.model, MLP, 4, 0)
    try:
        first, calls = adapters.first_adapted_layer(adapted), []
        batch = make_batches(base.model, encoded[1], first, 512, base.device)[0]
        parameters, n = list(adapters.parameters(adapted).values()), len(batch.passages)

        def work(batch: Any) -> Any:
            calls.append(len(batch.passages))
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter) if parameter.grad is None else parameter.grad + 1.0
            if len(batch.passages) > n // 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.zeros(1)

        Pieces(parameters).run(batch, work)
        assert calls == [n, n // 2, n - n // 2]
        assert {float(p.grad.max()) for p in parameters if p.grad is not None} == {2.0}  # of the halves alone
    finally:
        adapters.detach(adapted)


def diverging(monkeypatch: pytest.MonkeyPatch, torch: Any, at: int, times: int) -> list[float]:
    """Spoil the parameters after the `at`-th step, so many times; the rates of all steps."""
    rates: list[float] = []
    left = [times]
    plain = torch.optim.Adam.step

    def step(self: Any, *arguments: Any) -> Any:
        done = plain(self, *arguments)
        rates.append(self.param_groups[0]["lr"])
        if len(rates) >= at and left[0]:
            left[0] -= 1
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(float("nan"))
        return done

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return rates


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_goes_back_and_on_more_slowly(
    torch: Any, base: BaseModel, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = diverging(monkeypatch, torch, 5, 1)
    run = Session(base=base, encoded=encoded[1], plan=encoded[0], options=ApplyOptions(device="cpu"))
    run.run()
    adapters.detach(run.adapted)
    assert run.state.outcome is Outcome.MEMORIZED
    assert rates[5] == pytest.approx(rates[0] / 2)  # from the state before the first step, at half the rate


@pytest.mark.slow
def test_a_spoilt_adapter_is_no_checkpoint(
    torch: Any, base: BaseModel, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step spoils the adapter, and a checkpoint is due before a look finds that: nothing could go on from it."""
    monkeypatch.setattr(session, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(session, "CHECKPOINT_SHARE", 0.0)
    diverging(monkeypatch, torch, 5, 2)
    taken: list[Checkpoint] = []
    run = Session(
        base=base, encoded=encoded[1], plan=encoded[0], options=ApplyOptions(device="cpu"), save=taken.append
    )
    run.run()
    adapters.detach(run.adapted)
    assert run.state.outcome is Outcome.MEMORIZED
    assert len(taken) > 2
    assert all(bool(p.isfinite().all()) for one in taken for p in one.numbered("parameter"))


def test_a_good_state_stays_good_to_go_back_to_again(torch: Any, base: BaseModel, encoded: Any) -> None:
    adapted = adapters.attach(base.model, MLP, 4, 0)
    try:
        trainer = Trainer(adapted, encoded[1], TrainingOptions(max_steps=9))
        reports = trainer.steps()
        for _ in range(3):
            next(reports)
        good = trainer.state().copy()
        wanted = good.copy()
        trainer.retreat(good)
        list(trainer.steps())
        assert good.state == wanted.state
        assert all(torch.equal(good.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    finally:
        adapters.detach(adapted)


@pytest.mark.slow
def test_a_loss_that_stays_not_a_number_is_an_error(
    torch: Any, base: BaseModel, encoded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging(monkeypatch, torch, 1, 10**6)
    run = Session(base=base, encoded=encoded[1], plan=encoded[0], options=ApplyOptions(device="cpu"))
    try:
        with pytest.raises(TrainingDivergedError):
            run.run()
    finally:
        adapters.detach(run.adapted)
