"""Answers of engines, in whichever form, as what was decoded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.engines import LIKELY, OTHER, content, named, plain

from lorasize.errors import ModelError
from lorasize.recall.engines.completion import decoded_of

TARGET = (7, 8, 2)
P = math.exp(LIKELY)


@pytest.mark.parametrize("form", [content, named])
def test_ids_p_and_margin_are_read(form: Any) -> None:
    decoded = decoded_of(form(TARGET), TARGET, 3, 2, "engine")
    assert decoded.ids == TARGET
    assert decoded.probabilities == pytest.approx([P] * 3)
    assert decoded.logit_margin == pytest.approx(LIKELY - OTHER)
    assert decoded_of(form(TARGET), (), 3, 2, "engine").probabilities == pytest.approx([P] * 3)


@pytest.mark.parametrize("form", [content, named])
def test_p_is_known_as_far_as_the_target_came(form: Any) -> None:
    decoded = decoded_of(form((7, 7, 2)), TARGET, 3, 2, "engine")  # 8 was second to 7
    assert decoded.ids == (7, 7, 2)
    assert decoded.probabilities == pytest.approx([P, math.exp(OTHER)])
    assert decoded.logit_margin is None
    assert len(decoded_of(form((7, 5, 2)), TARGET, 3, 2, "engine").probabilities) == 1  # 8 was not among the likely


def test_a_stop_that_is_not_told_is_added() -> None:
    answer = named((7, 8))
    assert decoded_of(answer, TARGET, 3, 2, "engine").ids == TARGET
    assert len(decoded_of(answer, TARGET, 3, 2, "engine").probabilities) == 2
    assert decoded_of(named((7, 8), stops=False), TARGET, 3, 2, "engine").ids == (7, 8)
    assert decoded_of(named((7, 8, 9)), (7, 8, 9), 3, 2, "engine").ids == (7, 8, 9)  # as many as were asked for


def test_token_ids_alone_are_enough_for_ids() -> None:
    answer = {"choices": [{"text": "x", "token_ids": [7, 8, 2], "logprobs": None, "finish_reason": "stop"}]}
    decoded = decoded_of(answer, TARGET, 3, 2, "engine")
    assert (decoded.ids, decoded.probabilities, decoded.logit_margin) == (TARGET, (), None)


def test_a_text_without_ids_is_kept_as_it_is() -> None:
    decoded = decoded_of(plain(" 42"), TARGET, 3, 2, "engine")
    assert (decoded.ids, decoded.text, decoded.stopped) == ((), " 42", True)
    assert not decoded_of(plain(" 42", stops=False), TARGET, 3, 2, "engine").stopped
    by_words = content(TARGET)
    for entry in by_words["choices"][0]["logprobs"]["content"]:
        del entry["id"]  # as OpenAI's own
    assert decoded_of(by_words, TARGET, 3, 2, "engine").text == "x"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"error": {"message": "no such\nmodel"}}, r"engine: refused \(no such model\)"),
        ({"error": "busy"}, r"engine: refused \(busy\)"),
        ({"choices": []}, "engine: its answer is no completion"),
        ([1, 2], "engine: its answer is no completion"),
        ({"choices": [3]}, "engine: its answer is no completion"),
        ({"choices": [{"logprobs": {"content": [4]}}]}, "engine: its answer cannot be read"),
        ({"choices": [{"logprobs": {"content": [{"id": "x"}]}}]}, "engine: its answer cannot be read"),
    ],
)
def test_what_is_no_completion_is_an_error(answer: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        decoded_of(answer, TARGET, 3, 2, "engine")


def test_infinities_are_unknown() -> None:
    answer = content(TARGET)
    answer["choices"][0]["logprobs"]["content"][1]["logprob"] = -math.inf
    assert len(decoded_of(answer, TARGET, 3, 2, "engine").probabilities) == 1
