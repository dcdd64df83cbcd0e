"""Probes that end on the same few tokens are no measure of capacity."""

from __future__ import annotations

import pytest
from support.calibration import observation

from lorasize.law.observations import fit_observations, recurring_tokens, without_held_up
from lorasize.records import Calibration, Observation


def ended_on(*tokens: int, rank: int = 1) -> Observation:
    """A probe that left these tokens."""
    left = {"stubborn": tokens, "n_stubborn": len(tokens), "threshold_met": False}
    return observation(rank, 60).model_copy(update=left)


def test_a_token_that_three_probes_end_on_holds_them_up() -> None:
    held_up = [ended_on(7, 9), ended_on(7), ended_on(3, 7, rank=2)]
    others = [ended_on(9), ended_on(9, 9, 9), observation(1, 80)]
    assert recurring_tokens([*held_up, *others]) == {7, 9}
    assert recurring_tokens([*held_up, *others[1:]]) == {7}
    assert without_held_up([*held_up, *others[1:]]) == tuple(others[1:])
    assert without_held_up(held_up[:2]) == tuple(held_up[:2])


@pytest.mark.slow
def test_the_fit_is_that_without_them(calibrated_llama: tuple[Calibration, object]) -> None:
    seen = calibrated_llama[0].observations
    false = [o.model_copy(update={"stubborn": (7,), "n_stubborn": 1, "threshold_met": False}) for o in seen[:1]] * 3
    assert fit_observations([*seen, *false]) == fit_observations(seen)
