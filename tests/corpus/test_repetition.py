"""Copies cost once: which tokens repeat earlier passages."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasize.corpus.repetition import CONTEXT, repeated
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.demand import demand
from lorasize.records import Passage


def passage(prompt: int, target: tuple[int, ...], line: int = 1) -> EncodedPassage:
    """A passage of these token ids."""
    about = Passage(id=f"f:{line}", file="f", line=line, prompt="", target="x")
    return EncodedPassage(about, (prompt,), target)


PAGE = tuple(range(100, 140))


def test_a_copy_costs_only_its_beginning() -> None:
    first, copy = repeated([passage(1, PAGE), passage(2, PAGE)])
    assert not any(first)
    assert copy == [False] * CONTEXT + [True] * (len(PAGE) - CONTEXT)


def test_a_change_in_a_copy_is_paid_for_until_the_context_is_whole_again() -> None:
    changed = (*PAGE[:20], 7, *PAGE[21:])
    _, copy = repeated([passage(1, PAGE), passage(2, changed)])
    assert [k for k, old in enumerate(copy) if not old] == [*range(CONTEXT), *range(20, 21 + CONTEXT)]


def test_repetition_inside_one_passage_is_left_to_the_base_model() -> None:
    assert repeated([passage(1, PAGE * 3)]) == [[False] * 120]


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=1, max_size=5))
def test_every_token_has_a_verdict_and_a_second_corpus_adds_only_beginnings(targets: list[list[int]]) -> None:
    once = [passage(k, tuple(target)) for k, target in enumerate(targets)]
    found = repeated(once + once)
    assert [len(old) for old in found] == [len(target) for target in targets] * 2
    assert found[: len(once)] == repeated(once)
    assert all(all(old[CONTEXT:]) for old in found[len(once) :])


def test_demand_names_the_costliest_passages_and_leaves_copies_out(torch: Any) -> None:
    losses = [torch.full((40,), 2.0), torch.full((40,), 3.0), torch.full((4,), 1.0)]
    encoded = [passage(1, PAGE, 1), passage(2, PAGE, 2), passage(3, (1, 2, 3, 4), 3)]
    found = demand(encoded, losses)
    assert found.nats == pytest.approx(40 * 2.0 + CONTEXT * 3.0 + 4 * 1.0)
    assert found.base_loss == pytest.approx((40 * 2.0 + 40 * 3.0 + 4 * 1.0) / 84)
    assert found.n_repeated == 40 - CONTEXT
    assert [(p.line, p.nats) for p in found.costliest] == [(1, 80.0), (2, CONTEXT * 3.0), (3, 4.0)]
