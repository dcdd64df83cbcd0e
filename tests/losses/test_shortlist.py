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
    assert len(near.rows) < VOCABULARY / 10
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


def test_each_batch_has_its_own_and_it_grows_old(
    torch: Any, case: tuple[Head, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, hidden, targets = case
    held = Shortlists(head)
    assert not held.able
    monkeypatch.setattr(shortlists, "LARGE", VOCABULARY)
    assert held.able
    one, other = (a_batch(torch, targets, (k,)) for k in (0, 1))
    first = held.of(one, hidden, 0)
    assert held.of(one, hidden + 1.0, 7) is first
    assert held.of(other, hidden, 7) is not first
    assert held.of(one, hidden + 1.0, 8) is not first


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
    assert stopped.state["step"] % 8
    _, (again, resumed) = train(None, stopped)
    assert again.step == last.step
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
