"""A part of a large head and the rest to first order, against the whole head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import adapter
from support.sites import MLP

from lorasize import models
from lorasize.losses import shortlist as shortlists
from lorasize.losses.batches import Batch
from lorasize.losses.head import Head, OwnLogits
from lorasize.losses.shortlist import Shortlists, shortlist
from lorasize.losses.token_losses import TokenLosses, loss_and_gradient
from lorasize.models.adapters import parameters
from lorasize.training import Trainer, TrainingOptions

N, WIDTH, VOCABULARY = 20, 32, 5000


@pytest.fixture(params=["plain", "bias and scale"])
def case(request: pytest.FixtureRequest, torch: Any) -> tuple[Head, Any, Any]:
    """A head, hidden states and targets."""
    draw = torch.Generator().manual_seed(0)
    weight = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=draw)
    bias = 0.5 * torch.randn(VOCABULARY, generator=draw)
    head = Head(weight, None, None, 1.0) if request.param == "plain" else Head(weight, bias, None, 0.7)
    targets = torch.randint(VOCABULARY, (N,), generator=draw)
    return head, torch.randn(N, WIDTH, generator=draw), targets


def half(losses: TokenLosses) -> Any:
    """Weights of an objective: every other token's loss, the others none."""
    weights = losses.loss.sqrt()
    weights[::2] = 0.0
    return weights


@pytest.mark.parametrize(("away", "of_loss", "of_gradient"), [(0.0, 1e-5, 1e-4), (0.1, 0.05, 0.05)])
def test_it_is_the_head_where_it_was_seen_and_nearly_so_around(
    torch: Any, case: tuple[Head, Any, Any], away: float, of_loss: float, of_gradient: float
) -> None:
    head, hidden, targets = case
    near = shortlist(head, hidden, targets, 3)
    assert near.born == 3
    assert set(targets.tolist()) <= set(near.rows.tolist())
    assert len(near.rows) < VOCABULARY / 7
    moved = hidden + away * torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1))
    whole = loss_and_gradient(head, moved, targets, half)
    part = loss_and_gradient(near.head, moved, near.targets, half, near.rest(moved))
    assert torch.allclose(part[0].loss, whole[0].loss, atol=of_loss)
    assert (part[1] - whole[1]).abs().max() <= of_loss
    assert (part[2] - whole[2]).norm() <= of_gradient * whole[2].norm()
    assert bool((part[2][::2] == 0.0).all())


def test_a_head_in_pieces_has_the_same_shortlist(
    torch: Any, case: tuple[Head, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, hidden, targets = case
    at_once = shortlist(head, hidden, targets, 0)
    monkeypatch.setattr("lorasize.losses.head._CHUNK_BYTES", 16 * 4 * VOCABULARY)
    pieces = shortlist(head, hidden, targets, 0)
    assert torch.equal(pieces.rows, at_once.rows)
    assert torch.allclose(pieces.offset, at_once.offset, atol=1e-3)
    assert torch.allclose(pieces.slope, at_once.slope, atol=1e-3)


def a_batch(torch: Any, targets: Any, passages: tuple[int, ...]) -> Batch:
    """A batch of which nothing but targets and passages matters."""
    nothing = torch.zeros(1, 1)
    return Batch(nothing, nothing, nothing, nothing, targets, passages, (len(targets),))


def test_each_batch_has_its_own_and_it_lasts_for_longer_the_better_it_was(
    torch: Any, case: tuple[Head, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step at first; then twice as many each time, up to eight, while the states hardly move."""
    head, hidden, targets = case
    held = Shortlists(head)
    assert not held.able
    monkeypatch.setattr(shortlists, "LARGE", VOCABULARY)
    assert held.able
    one, other = (a_batch(torch, targets, (k,)) for k in (0, 1))
    for step, lasts in ((0, 1), (1, 2), (3, 4), (7, 8), (15, 8)):
        made = held.of(one, hidden, step)
        assert (made.born, made.lasts) == (step, lasts)
        assert held.of(one, hidden, step + lasts - 1) is made
    assert held.of(other, hidden, 15).lasts == 1
    assert held.of(one, hidden, 15) is made


def test_one_that_was_wrong_is_made_again_sooner(
    torch: Any, case: tuple[Head, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the states have gone far, what the other rows sum to is not what it was taken to be."""
    head, hidden, targets = case
    monkeypatch.setattr(shortlists, "LARGE", VOCABULARY)
    held, batch = Shortlists(head), a_batch(torch, targets, (0,))
    for step in (0, 1, 3):
        assert held.of(batch, hidden, step).born == step
    far = hidden + 2.0 * torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(1))
    whole = head.logits(far).logsumexp(dim=0)
    assert (held.of(batch, hidden, 3).log_sum(far) - whole).abs().mean() > shortlists._TOLERANCE
    again = held.of(batch, far, 7)
    assert (again.born, again.lasts) == (7, 2)
    assert torch.allclose(again.log_sum(far), whole, atol=1e-3)


def test_a_head_that_caps_its_logits_or_is_not_known_has_none(monkeypatch: pytest.MonkeyPatch, torch: Any) -> None:
    monkeypatch.setattr(shortlists, "LARGE", 2)
    assert not Shortlists(Head(torch.ones(3, 2), None, 5.0, 1.0)).able
    assert not Shortlists(OwnLogits(3)).able


@pytest.mark.slow
def test_training_with_it_holds_every_token_and_goes_on_where_it_was_stopped(
    torch: Any, able_llama: Path, encode_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look sees the whole head. A trainer that takes up a checkpoint ends with the same adapter."""
    monkeypatch.setattr(shortlists, "LARGE", 100)
    base = models.load(str(able_llama), device="cpu")
    encoded = encode_text("The pilot boards at the second buoy.\n\nWater and power are at every berth.")
    options = TrainingOptions(max_steps=200)

    def train(stop: int | None, start: Any = None) -> tuple[Any, Any]:
        with adapter(base, MLP, 2) as adapted:
            trainer, taken = Trainer(adapted, encoded, options), []
            if start is not None:
                trainer.restore(start)
            for report in trainer.steps(lambda: taken.append(trainer.state().copy())):
                if report.step == stop:
                    break
            return taken[-1], (report, [p.detach().clone() for p in parameters(adapted).values()])

    _, (last, whole) = train(None)
    assert last.n_stubborn == 0
    assert last.evaluated
    assert last.step > 5
    stopped, _ = train(5)
    assert stopped.state["shortlists"]
    assert stopped.state["shortlists"][0]["born"] < 5
    _, (again, resumed) = train(None, stopped)
    assert again.step == last.step
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
