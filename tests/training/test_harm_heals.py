"""What training does while other text is harmed: it waits for the last pull, it does not call a stall, it moves on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorasize.records import Drift, StepReport
from lorasize.training.control import Control
from lorasize.training.rate import SHARE_WHILE_HARMED, Rate
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


HARDENED = [((0.03, 0.04), 2), ((0.04, 0.03), 1), ((0.04, 0.0399), 2), ((0.01,), 0)]


@pytest.mark.parametrize(("shares", "hardened"), HARDENED)
def test_the_pull_doubles_only_where_the_last_one_did_not_help(shares: tuple[float, ...], hardened: int) -> None:
    """Each share is how far text moved, under a bound of 0.02."""
    moved, pulls = iter(shares), []
    guard = SimpleNamespace(harden=lambda: pulls.append(1))
    control = Control(cast(Any, None), [], [], 0.02, cast(Any, guard))

    def measure() -> Drift:
        nats = next(moved)
        control.drift = Drift(before=1.0, after=1.0 + nats, nats=nats, bound=0.02)
        return control.drift

    control.measure = measure  # type: ignore[method-assign]
    for _ in shares:
        control.judge()
    assert len(pulls) == hardened


def test_the_rate_can_undo_harm_when_no_token_is_stubborn() -> None:
    rate = Rate(0.02)
    assert rate(50, SHARE_WHILE_HARMED) > 5 * rate(50, 0.0)
