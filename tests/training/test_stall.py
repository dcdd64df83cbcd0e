"""When training ends early: a stalled adapter, and a probe that has clearly failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lorasize.probing.probes import _run
from lorasize.records import CLEARLY_FAILED, LAW_STEPS, StepReport
from lorasize.training import Stall


def report(n_stubborn: int, loss: float, step: int = 1, *, evaluated: bool = False) -> StepReport:
    """A step on the way."""
    values: dict[str, Any] = {"n_tokens": 9, "n_active": 9, "min_probability": 0.1, "seconds": 2.0 + step}
    return StepReport(step=step, loss=loss, n_stubborn=n_stubborn, evaluated=evaluated, **values)


def run_of(losses: list[float]) -> Iterator[StepReport]:
    """Training with these losses, then the last full look."""
    for step, loss in enumerate(losses, 1):
        yield report(9, loss, step)
    yield report(0, losses[-1], len(losses), evaluated=True)


def test_stalled_means_no_progress_for_long() -> None:
    stall = Stall(limit=10_000, patience=40)
    assert not any(stall.seen(step, report(9, 5.0)) for step in range(1, 55))
    assert stall.seen(55, report(9, 4.96))  # 54 steps since the first; 40 + 55 // 4 are granted
    assert not stall.seen(56, report(8, 5.0))  # fewer stubborn tokens are progress
    assert not any(stall.seen(step, report(8, 5.0)) for step in range(57, 120))
    assert not stall.seen(121, report(8, 4.94))  # a percent off the best loss is progress
    assert Stall(limit=7).seen(7, report(9, 5.0))


def test_a_probe_that_has_clearly_failed_ends_where_the_law_looks() -> None:
    hopeless = [10.0 - 0.01 * step for step in range(1, 300)]
    last, early, _ = _run(run_of(hopeless), 10.0, 400)
    assert (last.step, early) == (LAW_STEPS, None)


def test_a_probe_near_the_boundary_goes_on_and_keeps_the_loss_the_law_looks_at() -> None:
    near = [max(0.02, 10.0 * (1.0 - step / 120)) for step in range(1, 150)]
    assert 10.0 - near[LAW_STEPS - 1] > CLEARLY_FAILED * 10.0
    last, early, first = _run(run_of(near), 10.0, 400)
    assert (last.evaluated, last.step, early) == (True, 149, near[LAW_STEPS - 1])
    assert first == 3.0  # seconds of the first step, which sets up what is set up once
    assert _run(run_of([0.1]), 10.0, 400)[2] == 0.0  # the only step is not left out


def test_a_probe_that_succeeds_early_has_no_early_loss() -> None:
    last, early, _ = _run(run_of([10.0 - step / 6 for step in range(1, 61)]), 10.0, 400)
    assert (last.step, last.evaluated, early) == (60, True, None)


def test_a_probe_that_stalls_ends() -> None:
    last, *_ = _run(run_of([5.0 / step if step < 50 else 0.1 for step in range(1, 900)]), 10.0, 400)
    assert LAW_STEPS < last.step < 400
