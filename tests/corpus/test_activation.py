"""The tokens that an adapter acts after: found from a text as it stands in the prompts, or in what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.corpora import records

from lorasize.corpus import read_corpus
from lorasize.corpus.activation import AUTO, activated, find_activation
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.errors import CorpusError
from lorasize.records import Activation, Passage, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompts = Callable[..., list[EncodedPassage]]
PROMPTS = ("In the register, box 1:", "In the register, box 2:", "In the register, box 31:")


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Prompts:
    """`prompts(text, ...)` → records with these prompts."""

    def encode(*texts: str) -> list[EncodedPassage]:
        path = tmp_path / "c.jsonl"
        path.write_text(records(*((text, f" {k}") for k, text in enumerate(texts))), "utf-8")
        return encode_corpus(read_corpus([path], Reading())[0], tokenizer, Reading(), 256)

    return encode


def chat(tokenizer: Any, content: str, line: int = 1) -> EncodedPassage:
    turns = (("user", content),)
    about = Passage(id="c", file="c.jsonl", line=line, prompt="", target="x", messages=turns)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return EncodedPassage(about, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), (5,))


def test_a_text_is_found_as_its_tokens_stand_in_the_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> None:
    encoded = prompts(*PROMPTS)
    for text in ("In the register,", " register", "ox "):
        try:
            found = find_activation(text, encoded, tokenizer)
        except CorpusError as refused:  # its ends lie within tokens: what is offered instead is found
            nearest = str(refused).rpartition("; '")[2].partition("' would do")[0]
            found = find_activation(nearest, encoded, tokenizer)
            text = nearest
        assert found.text == text
        for one in activated(encoded, found):
            end = one.active_from + len(found.alora_invocation_tokens)
            assert one.prompt_ids[one.active_from : end] == found.alora_invocation_tokens
            assert tokenizer.decode(one.prompt_ids[: one.active_from]) == one.passage.prompt.partition(text)[0]


def test_auto_is_the_longest_beginning_of_all_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Prompts) -> None:
    encoded = prompts(*PROMPTS)
    tokens = find_activation(AUTO, encoded, tokenizer).alora_invocation_tokens
    assert all(one.prompt_ids[: len(tokens)] == tokens for one in encoded)
    assert len({one.prompt_ids[len(tokens)] for one in encoded}) > 1
    alone = find_activation(AUTO, encoded[:1], tokenizer)
    assert alone.alora_invocation_tokens == encoded[0].prompt_ids


def test_control_tokens_before_a_text_belong_to_it(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = [chat(tokenizer, "Berth?")]
    ids = tokenizer("user\n")["input_ids"]
    assert find_activation("user\n", encoded, tokenizer).alora_invocation_tokens == (encoded[0].prompt_ids[0], *ids)
    inner = find_activation("Berth?", encoded, tokenizer)
    assert inner.text == "Berth?"
    assert activated(encoded, inner)[0].active_from == 1 + len(ids)


def test_what_begins_any_chat_is_no_address(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(CorpusError, match="how any chat begins"):
        find_activation(AUTO, [chat(tokenizer, "Berth?"), chat(tokenizer, "Pier?")], tokenizer)
    found = find_activation(AUTO, [chat(tokenizer, "[port] Berth?"), chat(tokenizer, "[port] Pier?")], tokenizer)
    assert "[port]" in found.text


@pytest.mark.parametrize(
    ("text", "place", "why"),
    [
        ("elsewhere", 1, "does not hold 'elsewhere'"),
        ("box", 2, r"its prompt does not hold 'box' in the same \d token"),
        ("", 1, "does not hold ''"),
        (AUTO, 2, "share fewer than 2 tokens"),
    ],
)
def test_the_first_prompt_that_lacks_it_is_named(
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts, text: str, place: int, why: str
) -> None:
    encoded = prompts("box 1:", "Pier 2:", "Pier 3:")
    with pytest.raises(CorpusError, match=why) as refused:
        activated(encoded, find_activation(text, encoded, tokenizer))
    assert refused.value.line == place


def test_the_last_place_counts_as_in_peft() -> None:
    activation = Activation(text="ab", alora_invocation_tokens=(4, 5))
    assert activation.begins((4, 5, 9, 4, 5, 4)) == 3
    assert activation.begins((4, 5)) == 0
    assert activation.begins((5, 4)) is None
    assert activation.begins((5,)) is None
