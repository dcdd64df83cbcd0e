"""The prompt of a chat as it is sent: tools, template kwargs, the clock, chance, and what the template adds itself."""

from __future__ import annotations

import copy
import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.corpora import Write
from support.models import CHAT_TEMPLATE

from lorasize.corpus import read
from lorasize.corpus.chat_prompt import look_at_prompts, moves
from lorasize.corpus.tokens import EncodedPassage, encode_corpus, sample, several_prompts
from lorasize.records import Passage, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOOLS = [{"type": "function", "function": {"name": "berth", "parameters": {"minimum": 1}}}]
TURNS = [{"role": "user", "content": "Berth?"}, {"role": "assistant", "content": "Nine"}]
WITH_TOOLS = "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}" + CHAT_TEMPLATE
THINKING = CHAT_TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
CLOCK = CHAT_TEMPLATE + "Today: {{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
CHANCE = CHAT_TEMPLATE + "{{ ['Hello', 'Good day'] | random }}"
OWN = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Tidy, a helper<|im_end|>\n{% endif %}"


def chats(write: Write, *beside: dict[str, Any], turns: Any = TURNS) -> list[Passage]:
    text = "".join(json.dumps({"messages": turns, **more}) + "\n" for more in beside or ({},))
    return read([write("chat.jsonl", text)]).passages


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def encode(tokenizer: PreTrainedTokenizerBase, passages: list[Passage], **reading: Any) -> list[EncodedPassage]:
    return encode_corpus(passages, tokenizer, Reading(**reading), 256)


def test_tools_are_rendered_as_transformers_does(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    """Each row with its own, whether it spells them as a list or, as TRL takes it too, as JSON."""
    able = with_template(tokenizer, WITH_TOOLS)
    for tools in (TOOLS, json.dumps(TOOLS)):
        (one,) = encode(able, chats(write, {"tools": tools}))
        asked = able.apply_chat_template(TURNS[:1], tools=TOOLS, tokenize=False, add_generation_prompt=True)
        assert one.passage.prompt == asked
        assert "minimum" in asked


def test_kwargs_of_the_row_come_before_those_for_all(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    able = with_template(tokenizer, THINKING)
    rows = chats(write, {"chat_template_kwargs": {"enable_thinking": True}}, {})
    one, other = encode(able, rows, chat_template_kwargs={"enable_thinking": False})
    assert ["<think>" in one.passage.prompt, "<think>" in other.passage.prompt] == [False, True]


def test_what_the_template_does_not_show_is_said(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    passages = chats(write, {"tools": TOOLS}, {}, turns=[{**TURNS[0], "name": "Ada"}, TURNS[1]])
    notes = look_at_prompts(tokenizer, passages, Reading()).notes
    assert [note.partition(" (")[0] for note in notes] == [
        "The chat template does not show messages.name", "The chat template does not show tools"
    ]  # fmt: skip
    assert look_at_prompts(with_template(tokenizer, WITH_TOOLS), chats(write, {"tools": TOOLS}), Reading()).notes == ()


def test_a_template_that_prints_the_day_is_found_and_the_day_kept(
    tokenizer: PreTrainedTokenizerBase, write: Write
) -> None:
    """Read again on another day with what the plan keeps, prompts are the same; fixed by a kwarg, nothing is said."""
    dated, passages = with_template(tokenizer, CLOCK), chats(write)
    sent = look_at_prompts(dated, passages, Reading())
    today = date.today().isoformat()
    assert (sent.reading.rendered_at, len(sent.notes)) == (today, 1)
    assert f"as of {today}" in sent.notes[0]
    (one,) = encode_corpus(passages, dated, Reading(rendered_at="2020-01-31"), 256)
    assert one.passage.prompt.endswith("Today: 31 Jan 2020")
    assert look_at_prompts(dated, passages, Reading(rendered_at="2020-01-31")).reading.rendered_at == "2020-01-31"
    fixed = Reading(chat_template_kwargs={"date_string": "1 May"})
    assert look_at_prompts(dated, passages, fixed) == type(sent)(fixed)
    assert moves(dated, passages, Reading())
    assert not moves(dated, passages, sent.reading)
    assert not moves(tokenizer, passages, Reading())


def test_a_template_that_draws_at_random_is_found(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    """What it draws is the same each time, here; nobody else's random numbers change."""
    import random

    drawing, passages = with_template(tokenizer, CHANCE), chats(write)
    random.seed(7)
    expected = random.random()
    random.seed(7)
    (note,) = look_at_prompts(drawing, passages, Reading()).notes
    assert "draws at random" in note
    assert len({encode(drawing, passages)[0].prompt_ids for _ in range(8)}) == 1
    assert random.random() == expected
    assert moves(drawing, passages, Reading())


def test_text_of_the_template_s_own_is_said(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    adding = with_template(tokenizer, OWN + CHAT_TEMPLATE)
    (note,) = look_at_prompts(adding, chats(write), Reading()).notes
    assert "'You are Tidy, a helper'" in note
    system = [{"role": "system", "content": "Be brief"}, *TURNS]
    assert look_at_prompts(adding, chats(write, turns=system), Reading()).notes == ()


def test_a_template_that_fails_is_left_to_encoding(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    failing = with_template(tokenizer, "{{ strftime_now() }}")
    assert look_at_prompts(failing, chats(write), Reading()).notes == ()


def test_one_prompt_is_shown_with_its_edges(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    """That of a chat before others; of no line that looks like a secret; long ones without their middle."""
    plain = read([write("a.jsonl", '{"prompt": "Agnes Holm:", "completion": "9"}\n')]).passages
    long = chats(write, turns=[{**TURNS[0], "content": "x " * 200 + "y"}, TURNS[1]])
    encoded = encode_corpus([*plain, *long], tokenizer, Reading(), 1024)
    shown = sample(encoded)
    assert shown is not None
    assert (shown.passage, shown.n_ids) == ("chat.jsonl:1", len(encoded[1].prompt_ids))
    assert (shown.first_ids, shown.last_ids) == (encoded[1].prompt_ids[:8], encoded[1].prompt_ids[-8:])
    assert (len(shown.text), shown.text[:12]) == (303, "<|im_start|>")
    other = sample(encoded, {(encoded[1].passage.file, 1)})
    assert other is not None
    assert other.text == "Agnes Holm:"
    assert sample(encoded[:1], {(encoded[0].passage.file, 1)}) is None


def test_several_prompts_of_one_target_are_counted(tokenizer: PreTrainedTokenizerBase, write: Write) -> None:
    rows = [{"prompts": ["Berth?", "Where?"], "completion": "Nine"}, {"prompt": "Pier?", "completion": "Two"}]
    encoded = encode(tokenizer, read([write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))]).passages)
    assert [one.passage.id for one in encoded] == ["a.jsonl:1", "a.jsonl:1#2", "a.jsonl:2"]
    assert several_prompts(encoded).startswith("1 target has several prompts, 2 in all")
    assert several_prompts(encoded[1:]) == ""


@pytest.mark.parametrize("fields", [{}, {"prompt": "instruction", "completion": "output"}])
def test_a_template_fills_in_any_column(
    fields: dict[str, str], tokenizer: PreTrainedTokenizerBase, write: Write
) -> None:
    """Once each, and other braces stay."""
    how = Reading(prompt_template="{prompt} {input} {x y}:", fields=fields)
    path = write("a.jsonl", '{"instruction": "Give the hour.", "input": "Maple Street", "output": "06:40"}\n')
    (one,) = encode_corpus(read([path], how).passages, tokenizer, how, 256)
    assert one.passage.prompt == "Give the hour. Maple Street {x y}:"


@pytest.mark.parametrize("name", ["f.safetensors", "config.json"])
def test_a_model_that_is_a_pointer_says_so(name: str, tmp_path: Path) -> None:
    from lorasize.errors import ModelError
    from lorasize.models.references import resolve

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "f.safetensors").write_bytes(b"x")
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(ModelError, match=rf"{name}: a Git LFS pointer, .* run `git lfs pull`"):
        resolve(str(tmp_path))
