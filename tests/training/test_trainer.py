"""The loop: its batches, its end, and what the threshold promises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.models import adapter, passage, plain_losses, random_passages
from support.sites import MLP

from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import TrainingDivergedError
from lorasize.losses.base import base_losses
from lorasize.losses.batches import make_batches
from lorasize.losses.head import Head
from lorasize.losses.token_losses import token_losses
from lorasize.models import BaseModel, adapters
from lorasize.records import Site, StepReport
from lorasize.training import Checkpoint, Evaluation, Trainer, TrainingOptions
from lorasize.training.objectives import Objective
from lorasize.training.precision import coarse_products, has_coarse_products
from lorasize.training.rate import BOUNDED_RATE, RATE, Rate, rate_of


def greedy(torch: Any, model: Any, one: EncodedPassage) -> tuple[int, ...]:
    """What greedy decoding gives after the prompt, one argmax at a time."""
    ids = list(one.prompt_ids)
    for _ in one.target_ids:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(one.prompt_ids) :])


def steps_of_epochs(trainer: Trainer) -> list[int]:
    """Train; the steps taken before each epoch."""
    found: list[int] = []
    list(trainer.steps(lambda: found.append(trainer.state().state["step"])))
    return found


def test_short_passages_are_not_padded_to_a_long_one_but_share_its_step(
    torch: Any, bases: dict[str, BaseModel]
) -> None:
    encoded = random_passages(torch, [(2, 3), (4, 40), (2, 3)])
    batches = make_batches(bases["llama"].model, encoded, 1, 4096, torch.device("cpu"))
    assert [tuple(batch.ids.shape) for batch in batches] == [(1, 43), (2, 4)]
    site = Site(target_modules=("up_proj",), layers_to_transform=(1,))
    for batch_tokens, steps in ((51, 1), (50, 2)):
        with adapter(bases["llama"], site, 1) as adapted:
            trainer = Trainer(adapted, encoded, TrainingOptions(batch_tokens=batch_tokens, max_steps=4))
            assert steps_of_epochs(trainer)[1] == steps


def test_states_past_the_limit_are_kept_in_a_file_without_a_name(
    torch: Any, bases: dict[str, BaseModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made: list[str] = []
    from_file = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda path, **how: (made.append(path), from_file(path, **how))[1])
    encoded, model = random_passages(torch, [(4, 6), (4, 30)]), bases["llama"].model
    first, second = make_batches(model, encoded, 2, 40, torch.device("cpu"))
    mapped = make_batches(model, encoded, 2, 40, torch.device("cpu"), prefix_bytes=first.stored.nbytes)
    assert [Path(path).parent for path in made] == [tmp_path]
    assert torch.equal(mapped[0].stored, first.stored)
    assert torch.equal(mapped[1].stored, second.stored)
    assert not list(tmp_path.iterdir())


def test_memorised_means_every_p_above_half_and_greedy_recall(torch: Any, bases: dict[str, BaseModel]) -> None:
    """The theorem: where every p exceeds ½, every argmax is the target, so greedy decoding cannot leave it."""
    base, encoded = bases["able"], random_passages(torch, [(4, 9), (3, 5), (6, 12)])
    frozen = {n: p.clone() for n, p in base.model.named_parameters()}
    with adapter(base, MLP, 8) as adapted:
        assert [greedy(torch, adapted, one) == one.target_ids for one in encoded] == [False] * 3
        reports = list(Trainer(adapted, encoded, TrainingOptions(learning_rate=0.03)).steps())
        with torch.no_grad():
            losses = torch.cat([plain_losses(torch, adapted, one) for one in encoded])
        assert [greedy(torch, adapted, one) for one in encoded] == [one.target_ids for one in encoded]
    assert float(losses.max()) < math.log(2)
    assert math.exp(-float(losses.max())) == pytest.approx(reports[-1].min_probability, abs=1e-4)
    assert math.exp(-float(losses.max())) > 0.52 - 1e-4  # threshold and margin
    assert float(losses.mean()) == pytest.approx(reports[-1].loss, abs=1e-4)
    check_reports(reports, n_tokens=26)
    assert all(torch.equal(frozen[n], p) for n, p in base.model.named_parameters())


def check_reports(reports: list[StepReport], n_tokens: int) -> None:
    """One report a step and a last one that looked at everything."""
    assert [r.step for r in reports[:-1]] == list(range(1, len(reports)))
    assert [r.evaluated for r in reports] == [False] * (len(reports) - 1) + [True]
    assert {r.n_tokens for r in reports} == {n_tokens}
    assert reports[-1].n_stubborn == 0
    assert reports[-1].step == reports[-2].step < 1000
    assert reports[0].n_stubborn == n_tokens
    assert all(r.n_active >= 1 for r in reports[:-1])
    assert all(a.seconds <= b.seconds for a, b in zip(reports, reports[1:], strict=False))


def test_the_converse_does_not_hold(torch: Any, bases: dict[str, BaseModel]) -> None:
    """Recalled though p < ½: three tokens at 0.4, 0.3, 0.3 by hand, and the untouched model's own greedy text."""
    head_logits = torch.log(torch.tensor([0.4, 0.3, 0.3]))
    found = token_losses(Head(head_logits[:, None], None, None, 1.0), torch.ones(1, 1), torch.tensor([0]))
    assert bool(found.correct[0])
    assert float(found.loss[0]) > math.log(2)
    base, prompt = bases["llama"], passage((5, 6, 7), (0,) * 6)
    own = passage(prompt.prompt_ids, greedy(torch, base.model, prompt))
    seen = Evaluation(torch.cat(base_losses(base, [own])))
    assert greedy(torch, base.model, own) == own.target_ids
    assert seen.n_below(0.5) == 6


def test_the_step_budget_ends_in_a_full_look(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(4, 30), (3, 20)])
    site = Site(target_modules=("up_proj",), layers_to_transform=(3,))
    with adapter(bases["llama"], site, 1) as adapted:
        reports = list(Trainer(adapted, encoded, TrainingOptions(max_steps=5, batch_tokens=30)).steps())
        with torch.no_grad():
            losses = torch.cat([plain_losses(torch, adapted, one) for one in encoded])
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 5]
    assert reports[-1].evaluated
    assert reports[-1].n_stubborn == int((losses >= math.log(2)).sum()) > 0
    assert reports[-1].loss == pytest.approx(float(losses.mean()), abs=1e-4)


def test_no_step_is_taken_where_nothing_is_left_to_learn(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(4, 6)])
    with adapter(bases["able"], MLP, 8) as adapted:
        assert list(Trainer(adapted, encoded, TrainingOptions()).steps())[-1].n_stubborn == 0
        again = list(Trainer(adapted, encoded, TrainingOptions()).steps())
    assert [(r.step, r.evaluated) for r in again] == [(0, True)]


@pytest.mark.parametrize("step", [0, 2])
def test_a_loss_that_is_no_number_is_an_error(torch: Any, bases: dict[str, BaseModel], step: int) -> None:
    site = Site(target_modules=("up_proj",), layers_to_transform=(3,))
    with adapter(bases["llama"], site, 1) as adapted:
        reports = Trainer(adapted, random_passages(torch, [(4, 6)]), TrainingOptions()).steps()
        for _ in range(step):
            next(reports)
        with torch.no_grad():
            next(iter(adapters.parameters(adapted).values())).fill_(math.nan)
        with pytest.raises(TrainingDivergedError, match=f"the loss is not a number at step {step}") as diverged:
            next(reports)
    assert diverged.value.step == step


def test_the_seed_decides_the_run(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(4, 6), (4, 7), (2, 9)])
    runs = []
    for seed in (0, 0, 1):
        with adapter(bases["able"], MLP, 2) as adapted:
            trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=6, batch_tokens=12, seed=seed))
            runs.append([r.loss for r in trainer.steps()])
    assert runs[0] == runs[1] != runs[2]


def test_the_rate_falls_with_the_share_of_stubborn_tokens() -> None:
    """Full at 40 % and more, a half at 10 %, a twentieth at the least."""
    rates = {share: Rate(0.1)(1, share) for share in (1.0, 0.4, 0.1, 0.0)}
    assert rates == pytest.approx({1.0: 0.1, 0.4: 0.1, 0.1: 0.05, 0.0: 0.005})


def test_the_rate_falls_with_many_batches() -> None:
    cases = ((None, 4), (None, 64), (BOUNDED_RATE, 64))
    few, many, bounded = (rate_of(None, allowed=rate, n_batches=n)(0, 1.0) for rate, n in cases)
    assert few == RATE
    assert many == pytest.approx(RATE / 8)
    assert bounded == BOUNDED_RATE
    last, last_of_many = (rate_of(None, allowed=0.02, n_batches=n)(0, 0.0) for n in (1, 4))
    assert last_of_many == pytest.approx(last / 4)


def test_another_optimiser_rate_and_objective_may_be_given(torch: Any, bases: dict[str, BaseModel]) -> None:
    """As benchmarks do: the rate hears of steps and of the share of tokens left, the objective of each step's looks."""
    encoded = random_passages(torch, [(4, 30), (3, 20)])
    heard: list[tuple[int, float]] = []
    weighed: list[int] = []
    looks: list[int] = []

    class Same(Objective):
        def weights(self, losses: Any, passages: Sequence[int], lengths: Sequence[int]) -> Any:
            weighed.append(len(losses.loss))
            return torch.ones_like(losses.loss)

    def moved(rate: float) -> Any:
        """How far a step of plain descent takes the adapter."""

        def schedule(step: int, stubborn: float) -> float:
            heard.append((step, stubborn))
            return rate

        with adapter(bases["llama"], Site(target_modules=("up_proj",), layers_to_transform=(3,)), 1) as adapted:
            before = [p.detach().clone() for p in adapters.parameters(adapted).values()]
            trainer = Trainer(
                adapted, encoded, TrainingOptions(max_steps=1), optimizer=torch.optim.SGD, rate=schedule,
                objective=Same("memft"), watch=lambda batch, losses: looks.append(len(losses.loss)),
            )  # fmt: skip
            assert next(trainer.steps()).n_active == 50
            after = list(adapters.parameters(adapted).values())
            return torch.cat([(p.detach() - old).flatten() for p, old in zip(after, before, strict=True)])

    near, far = moved(1.0), moved(2.0)
    assert near.any()
    torch.testing.assert_close(far, 2.0 * near)
    assert heard == [(0, 1.0)] * 2
    assert (sum(weighed), sum(looks)) == (2 * 50, 2 * (50 + 50))  # a full look before the step


def test_a_look_from_outside_does_not_disturb_training(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded, runs = random_passages(torch, [(5, 4)] * 6), []
    for looks in (0, 1):
        with adapter(bases["able"], MLP, 2) as adapted:
            trainer = Trainer(adapted, encoded, TrainingOptions(max_steps=40, batch_tokens=24, learning_rate=0.02))
            found = []
            for report in trainer.steps():
                found.append((report.step, report.loss))
                before = trainer.state().state
                for _ in range(looks):
                    trainer.evaluate()
                assert trainer.state().state == before
            runs.append([step for step, _ in found])
    assert runs[0] == runs[1]


def test_products_are_as_they_were_after_the_steps(torch: Any) -> None:
    before = torch.get_float32_matmul_precision()
    with suppress(KeyError), coarse_products(True):
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyError
    with coarse_products(False):
        assert torch.get_float32_matmul_precision() == before
    assert torch.get_float32_matmul_precision() == before
    assert not has_coarse_products(torch.device("meta"))


@pytest.mark.parametrize(
    ("able", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, True), ({"avx2": True}, False)]
)
def test_only_a_processor_that_has_bfloat16_uses_it(
    torch: Any, monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert has_coarse_products(torch.device("cpu")) is expected


def test_what_a_full_look_contradicts_is_trained_in_full_precision(torch: Any, bases: dict[str, BaseModel]) -> None:
    """A coarse look may pass what a full one does not; steps that only ever trusted coarse looks would never end."""
    with adapter(bases["able"], MLP, 8) as adapted:
        trainer = Trainer(adapted, random_passages(torch, [(4, 6)]), TrainingOptions(learning_rate=0.03))
        state = trainer.state().copy()
        passed = {**state.tensors, "latest": torch.zeros(6)}  # as a coarse look may have found
        trainer.restore(Checkpoint(passed, {**state.state, "coarse": True}))
        coarse: list[bool] = []
        reports = list(trainer.steps(lambda: coarse.append(trainer.state().state["coarse"])))
        assert coarse
        assert not any(coarse)
        assert len(reports) > 1
        assert reports[-1].n_stubborn == 0
