"""What training does while other text is harmed: the pull finds its strength, it does not call a stall, it moves on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lorasize.losses.statistics import Statistics
from lorasize.models import BaseModel, adapters
from lorasize.records import Drift, KindDrift, Site, StepReport
from lorasize.training.control import Control
from lorasize.training.guard import STRENGTH, Guard
from lorasize.training.rate import SLOWEST_BOUNDED, Rate, calmed
from lorasize.training.stall import PATIENCE, Stall


def report(step: int, n_stubborn: int = 0, loss: float = 0.1) -> StepReport:
    values: dict[str, Any] = {"step": step, "loss": loss, "n_tokens": 9, "n_stubborn": n_stubborn, "n_active": 0}
    return StepReport(**values, min_probability=0.4, seconds=1.0, evaluated=False)


def test_no_stall_while_other_text_is_harmed() -> None:
    stall = Stall(limit=10_000)
    assert not any(stall.seen(step, report(step), harmed=True) for step in range(1, 4 * PATIENCE))
    end = 4 * PATIENCE
    assert not stall.seen(end, report(end, n_stubborn=5))  # what was gained before is no measure any more
    assert any(stall.seen(step, report(step, n_stubborn=5)) for step in range(end + 1, 4 * end))


def test_the_limit_ends_it_all_the_same() -> None:
    stall = Stall(limit=30)
    assert [stall.seen(step, report(step), harmed=True) for step in (29, 30)] == [False, True]


def test_the_pull_grows_while_every_token_is_held_and_yields_where_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lorasize.training.guard.adapted_pairs", lambda adapted: {})
    guard = Guard(cast(Any, None), {})
    control = Control(cast(Any, None), [], [], 0.02, guard)
    moved = iter([0.01, 0.04, 0.04, 0.04])

    def measure() -> Drift:
        nats = next(moved)
        control.drift = Drift(before=1.0, after=1.0 + nats, nats=nats, bound=0.02)
        return control.drift

    control.measure = measure  # type: ignore[method-assign]
    control.judge()
    control.stepped(0.1, 0.0)
    assert guard.state.strength == STRENGTH  # the bound is kept
    control.judge()
    for _ in range(3):
        control.stepped(0.1, 0.0)
    hardest = guard.state.strength
    assert hardest > 1.5 * STRENGTH
    control.stepped(0.1, 0.1)
    assert STRENGTH < guard.state.strength < hardest
    yielded = guard.state.strength
    control.stepped(0.1, 0.0005)  # one token of two thousand
    assert guard.state.strength > yielded


def test_the_pull_changes_by_less_in_each_of_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the root: half as fast in each of four, twice as far over all of them."""
    monkeypatch.setattr("lorasize.training.guard.adapted_pairs", lambda adapted: {})
    grown = {}
    for n_parts in (1, 4):
        guard = Guard(cast(Any, None), {})
        guard.harm_found()
        for _ in range(n_parts):
            guard.balance(held=True, n_parts=n_parts)
        grown[n_parts] = guard.state.strength / STRENGTH
    assert 1.1 < grown[1] < 1.3
    assert grown[4] == pytest.approx(grown[1] ** 2)


def test_the_rate_can_undo_harm_when_no_token_is_stubborn() -> None:
    assert Rate(0.02, slowest=SLOWEST_BOUNDED)(50, 0.0) > 3 * Rate(0.02)(50, 0.0)


def test_the_rate_hardly_rises_where_tokens_are_lost_again() -> None:
    assert calmed(0.3, 0.3) == 0.3
    assert calmed(0.3, 0.01) == 0.02


def test_what_is_watched_is_held_tighter_where_other_text_moves_by_too_much() -> None:
    """Both are taken to move in proportion: at a fifth of the bound with others at twice theirs."""
    control = Control(cast(Any, None), [], [], 0.02)
    control.drift = Drift(before=1.0, after=1.004, nats=0.004, bound=0.02)
    assert not control.harmed
    control.tighten(2.0)
    assert control.bound == pytest.approx(0.8 * 0.002)
    assert control.harmed
    again = Control(cast(Any, None), [], [], 0.02)
    again.restore(control.to_json())
    assert (again.bound, again.tightened, again.harmed) == (control.bound, 1, True)


@pytest.mark.parametrize(
    ("kinds", "share"),
    [
        ({"incident": 0.108, "licence": 0.041, "maths": 0.006}, 0.041 / 0.05),
        ({"incident": 0.108, "licence": 0.06, "maths": 0.006}, 0.06 / 0.05),
        ({"retained": 0.108, "licence": 0.041, "maths": 0.006}, 0.108 / 0.05),  # the user's own is never left out
        ({"retained": 0.108}, 0.108 / 0.05),
        ({"neutral": 0.108}, 0.5),
    ],
)
def test_every_kind_but_one_keeps_its_bound(kinds: dict[str, float], share: float) -> None:
    texts = tuple(
        KindDrift(kind=kind, before=1.0, after=1.0, divergence=kl, unchanged=1.0) for kind, kl in kinds.items()
    )
    drift = Drift(before=1.0, after=1.01, nats=0.01, bound=0.02, divergence=0.01, texts=texts)
    assert drift.share_of_bound == pytest.approx(share)


def test_a_first_step_goes_as_far_by_general_text_at_any_rank(torch: Any, bases: dict[str, BaseModel]) -> None:
    """What the guard expects of it is what the statistics say of B moved by the rate in every entry."""
    base, reaches = bases["able"], {}
    site = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))
    for rank in (8, 32):
        adapted = adapters.attach(base.model, site, rank, 0)
        try:
            pairs, draw = adapters.adapted_pairs(adapted), torch.Generator().manual_seed(1)
            known = {}
            for path, (a, b) in pairs.items():
                rows = 100.0 * torch.randn(64, a.shape[1], generator=draw)
                known[path] = Statistics(rows.T @ rows / 64, torch.rand(len(b), generator=draw))
            guard = Guard(adapted, known)
            reaches[rank] = guard.reach
            assert guard.rate(1e-9) == 1e-9
            rate = guard.rate(1.0)
            moved = 0.0
            for path, (a, _) in pairs.items():
                read = ((a.detach() @ known[path].inputs) * a.detach()).sum(dim=1).sqrt().sum()
                moved += float((rate * read) ** 2 * known[path].gradients.sum() / 2)
            assert moved == pytest.approx(0.004, rel=0.2)
        finally:
            adapters.detach(adapted)
    assert reaches[32] == pytest.approx(16 * reaches[8])
