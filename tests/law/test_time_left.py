import pytest

from lorasize.law.time_left import steps_in_all
from lorasize.records import Estimate

PLAN = Estimate(point=100, lo=50, hi=200)


def test_at_the_start_the_plan_says_most() -> None:
    found = steps_in_all(PLAN, 5, 0.9)
    assert 75 < found.point < 130
    assert found.lo < found.point < found.hi


def test_without_a_plan_the_loss_tells() -> None:
    early, late = steps_in_all(None, 100, 0.5), steps_in_all(None, 100, 0.05)
    assert early.point > 3 * 100
    assert 100 < late.point < 150


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_plan_that_is_wrong_ten_times_over_yields_once_the_loss_has_fallen(factor: float) -> None:
    """Runs that came so far take some 1.5 times their steps; the plan alone would say 10 times or nothing."""
    true = 150
    found = steps_in_all(Estimate(point=true * factor, lo=true * factor / 2, hi=true * factor * 2), 100, 0.08)
    assert true / 1.35 < found.point < true * 1.35


def test_steps_in_all_are_more_than_those_so_far() -> None:
    for step, share in ((1, 1.0), (60, 0.2), (150, 0.01), (200, 1.2)):
        found = steps_in_all(PLAN, step, share)
        assert step < found.lo < found.point < found.hi
