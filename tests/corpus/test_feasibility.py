"""Conflicts between passages are found, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import EncodeText, records
from support.patience import grows_with_its_input

from lorasize.corpus.feasibility import feasibility, narrow_note, unreachable
from lorasize.corpus.tokens import EncodedPassage
from lorasize.records import Passage


def encoded(line: int, prompt: str, target: str) -> EncodedPassage:
    """A passage whose ids are letters, 0 the stop token."""
    passage = Passage(id=f"a:{line}", file="a.jsonl", line=line, prompt=prompt, target=target)
    return EncodedPassage(passage, tuple(map(ord, prompt)), (*map(ord, target), 0))


def test_one_prompt_with_two_targets_is_reported_with_both_lines(encode_text: EncodeText) -> None:
    """On real tokens: the second Jerry cannot be."""
    lines = records(("Jerry:", "91"), ("Agnes:", "44"), ("Jerry:", "77"), ("Jerry:", "91"))
    found = feasibility(encode_text(lines, "book.jsonl"))
    assert not found.feasible
    first, second = found.issues
    assert (first.kind, first.passages, first.position, first.line) == ("same_prompt", (0, 2), 0, 3)
    assert "book.jsonl:1 and " in first.message
    assert "book.jsonl:3 have the same prompt" in first.message
    assert first.file.endswith("book.jsonl")
    assert (second.passages, second.line) == ((2, 3), 4)


def test_a_target_that_goes_on_conflicts_at_the_stop_token() -> None:
    """One wants to stop where the other goes on."""
    (issue,) = feasibility([encoded(1, "q:", "ab"), encoded(2, "q:", "abc")]).issues
    assert (issue.kind, issue.passages, issue.position, issue.line) == ("same_prefix", (0, 1), 2, 2)
    assert "a.jsonl:1 and a.jsonl:2 share everything before target token 2" in issue.message


def test_a_prompt_that_holds_anothers_target_conflicts() -> None:
    """The context is what counts, not where the prompt ends: after "q:a" one wants b, the other c."""
    (issue,) = feasibility([encoded(1, "q:", "ab"), encoded(2, "q:a", "c")]).issues
    assert (issue.kind, issue.passages, issue.position) == ("same_prefix", (0, 1), 0)


@pytest.mark.parametrize(
    "passages",
    [
        [("q:", "ab"), ("q:", "ab")],  # exact duplicates
        [("q1:", "ab"), ("q2:", "cd")],  # the prompts part first
        [("q:", "ab"), ("q:x", "y")],  # after "q:" only one passage has a target token
        [("q:", "ab"), ("q:a", "b")],  # after "q:a" both want b
        [("q", "ab"), ("p", "ac"), ("r", "a")],
        [],
    ],
)
def test_no_false_alarm(passages: list[tuple[str, str]]) -> None:
    """None of these asks for two tokens after one context."""
    assert feasibility([encoded(k, *pair) for k, pair in enumerate(passages, start=1)]).model_dump() == {
        "feasible": True,
        "issues": (),
    }


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=3)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_feasibility_agrees_with_its_definition(pairs: list[tuple[str, str]]) -> None:
    """Against all pairs compared token by token: the same later passages, at the same first position."""
    passages = [encoded(k, *pair) for k, pair in enumerate(pairs, start=1)]
    expected: dict[int, tuple[int, int]] = {}
    for j, later in enumerate(passages):
        for i, earlier in enumerate(passages[:j]):
            one, two = (p.prompt_ids + p.target_ids for p in (earlier, later))
            at = next((k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), None)
            if at is None or at < max(len(earlier.prompt_ids), len(later.prompt_ids)):
                continue
            expected[j] = min(expected.get(j, (at, i)), (at, i))
    found = feasibility(passages)
    assert {issue.passages[1]: issue.passages[0] for issue in found.issues} == {j: i for j, (_, i) in expected.items()}
    for issue in found.issues:
        at, _ = expected[issue.passages[1]]
        assert issue.position == at - len(passages[issue.passages[1]].prompt_ids)
    assert found.feasible == (not expected)


@pytest.mark.slow
def test_feasibility_takes_time_with_the_tokens() -> None:
    """20 000 passages under one long prompt prefix: comparing all pairs would take 2·10⁸ comparisons."""
    passages = [encoded(k + 1, f"the number of {k} is", str(k)) for k in range(20_000)]
    assert grows_with_its_input(lambda n: feasibility(passages[:n]), len(passages))
    passages.append(encoded(20_001, "the number of 19999 is", "x"))
    (issue,) = feasibility(passages).issues
    assert issue.passages == (19_999, 20_000)


def letters(ids: Sequence[int]) -> str:
    """The text of ids that are letters."""
    return "".join(map(chr, ids))


def test_a_token_with_a_twin_is_an_issue_at_its_line() -> None:
    page = encoded(3, "p:", "one\ntwo Z\n")
    page = replace(page, passage=page.passage.model_copy(update={"start": 0, "file": "page.md"}))
    corpus = [encoded(1, "q:", "ab"), page, encoded(5, "r:", "Z")]
    found = unreachable(corpus, {ord("Z"): [ord("Q"), ord("W")]}, letters)
    places = [(i.kind, i.passages, i.position, i.line) for i in found.issues]
    assert places == [("token", (1, 1), 8, 4), ("token", (2, 2), 0, 5)]
    assert "the target needs token 90 ('Z')" in found.issues[0].message
    assert "is that of token 81 ('Q') and 1 more: it never exceeds ½" in found.issues[0].message
    assert unreachable([page], {}, letters).feasible


def test_a_token_that_is_hard_to_hold_is_named_with_how_probable_it_may_become() -> None:
    said = narrow_note([encoded(1, "q:", "ab"), encoded(2, "r:", "cZd")], {ord("Z"): -2.0, ord("a"): 1.0}, letters)
    assert said.startswith("Hard to hold: token 90 ('Z') at a.jsonl:2, and 1 more target token like it.")
    assert "at most 0.12" in said
