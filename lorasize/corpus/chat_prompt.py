"""A chat as the model's own template renders it."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from typing import TYPE_CHECKING, Any

from lorasize.records import Passage, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_DAYS = ("1999-11-30", "2034-02-07")  # nothing that a date may print is the same on both
_SEEDS = range(8)
_FEW = 20  # chats in which chance is looked for
_CLOCK = (
    "The chat template prints the time: prompts are trained and proven as of {day}, and a server that renders "
    "messages sends others on other days. Send the prompt_ids in passages.jsonl, or fix the date by what the template "
    "takes for it."
)
_CHANCE = (
    "The chat template draws at random: one prompt of several is trained and proven, and a server that renders "
    "messages may send another. Send the prompt_ids in passages.jsonl."
)
_OWN = (
    "The chat template puts text of its own before chats without a system turn, and it is part of every prompt proven: "
    "{own!r:.200}. A system turn of your own takes its place in most templates."
)


def rendered(tokenizer: PreTrainedTokenizerBase, passage: Passage, reading: Reading, seed: int = 0) -> str:
    """The prompt of a chat, up to where the assistant speaks, rendered as TRL does.

    A template that draws at random draws the same each time. One that prints the time prints the day of the reading.
    May raise anything: a template is a program of the model's author.
    """
    beside: dict[str, Any] = json.loads(passage.chat) if passage.chat else {}
    turns = beside.get("messages") or [{"role": role, "content": content} for role, content in passage.messages]
    given: dict[str, Any] = {**reading.chat_template_kwargs, **beside.get("chat_template_kwargs", {})}
    with _draws(seed), _at_midnight(reading.rendered_at):
        return str(
            tokenizer.apply_chat_template(
                turns, tools=beside.get("tools"), tokenize=False, add_generation_prompt=True, **given
            )
        )


@contextmanager
def _at_midnight(day: str | None) -> Iterator[None]:
    """Let the clock of chat templates (`strftime_now`) stand at the beginning of a day; let it go where that is None.

    transformers hands templates its own function, and no other: what that asks the time is replaced.
    """
    if day is None:
        yield
        return
    moment = datetime.fromisoformat(day)

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Stopped:
            return cls(moment.year, moment.month, moment.day, tzinfo=tz)

    rendering: Any = importlib.import_module("transformers.utils.chat_template_utils")
    kept = rendering.datetime
    rendering.datetime = Stopped
    try:
        yield
    finally:
        rendering.datetime = kept


@contextmanager
def _draws(seed: int) -> Iterator[None]:
    """Let Python's own random numbers be the same in here, and go on outside as if nothing had been drawn."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@dataclass(frozen=True)
class Sent:
    """How prompts are to be rendered, and what the user must know of them."""

    reading: Reading
    notes: tuple[str, ...] = ()


def look_at_prompts(tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage], reading: Reading) -> Sent:
    """What the chat template makes of these chats that nobody wrote: the day, chance, text of its own, things left out.

    Where it prints the time, the reading returned fixes the day, so that the same prompts come out tomorrow.
    """
    chats = [passage for passage in passages if passage.messages]
    if not chats or tokenizer.chat_template is None:
        return Sent(reading)
    try:
        return _looked(tokenizer, chats, reading)
    except Exception:  # a template may raise anything; encoding says so, and at which record
        return Sent(reading)


def moves(tokenizer: PreTrainedTokenizerBase, passages: Sequence[Passage], reading: Reading) -> bool:
    """Whether the chat template may render these chats otherwise another time, by the clock or by chance."""
    chats = [passage for passage in passages if passage.messages]
    return (reading.rendered_at is None and _prints_time(tokenizer, chats, reading)) or _draws_lots(
        tokenizer, chats, reading
    )


def _prints_time(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Passage], reading: Reading) -> bool:
    if "strftime_now" not in json.dumps(tokenizer.chat_template):  # the one clock that templates have
        return False
    one, other = (reading.model_copy(update={"rendered_at": day}) for day in _DAYS)
    return any(rendered(tokenizer, chat, one) != rendered(tokenizer, chat, other) for chat in chats)


def _draws_lots(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Passage], reading: Reading) -> bool:
    if "random" not in json.dumps(tokenizer.chat_template):  # the filter of Jinja
        return False
    return any(len({rendered(tokenizer, chat, reading, seed) for seed in _SEEDS}) > 1 for chat in chats[:_FEW])


def _looked(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Passage], reading: Reading) -> Sent:
    notes = []
    if _prints_time(tokenizer, chats, reading):
        reading = reading.model_copy(update={"rendered_at": reading.rendered_at or date.today().isoformat()})
        notes.append(_CLOCK.format(day=reading.rendered_at))
    if _draws_lots(tokenizer, chats, reading):
        notes.append(_CHANCE)
    notes += _left_out(tokenizer, chats, reading)
    if own := _own_text(tokenizer, chats, reading):
        notes.append(_OWN.format(own=own))
    return Sent(reading, tuple(notes))


def _left_out(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Passage], reading: Reading) -> Iterator[str]:
    """What stands in the first chat that has it, and changes nothing of its prompt."""
    seen: set[str] = set()
    for passage in chats:
        beside: dict[str, Any] = json.loads(passage.chat) if passage.chat else {}
        inner = {key for turn in beside.get("messages", ()) for key in turn} - {"role", "content"}
        for name in sorted(({f"messages.{key}" for key in inner} | beside.keys() - {"messages"}) - seen):
            seen.add(name)
            without = passage.model_copy(update={"chat": json.dumps(_without(beside, name))})
            if rendered(tokenizer, passage, reading) == rendered(tokenizer, without, reading):
                place = f"{passage.file}:{passage.line}"
                yield f"The chat template does not show {name} ({place}): the prompt is the same without."


def _without(beside: dict[str, Any], name: str) -> dict[str, Any]:
    if not name.startswith("messages."):
        return {key: value for key, value in beside.items() if key != name}
    key = name.partition(".")[2]
    return beside | {"messages": [{k: v for k, v in turn.items() if k != key} for turn in beside["messages"]]}


def _own_text(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Passage], reading: Reading) -> str:
    """What the template says before the first turn of a chat that is the user's; "" where only signs and names."""
    chat = next((chat for chat in chats if chat.messages[0][0] == "user" and chat.messages[0][1]), None)
    if chat is None:
        return ""
    alone = chat.model_copy(update={"chat": ""})
    before, found, _ = rendered(tokenizer, alone, reading).partition(chat.messages[0][1].strip())
    if not found:
        return ""
    for token in (*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values())):
        before = before.replace(token, "\n") if token.strip() else before
    lines = [" ".join(line.split()) for line in before.split("\n")]
    return " ".join(line for line in lines if len(line.split()) > 1)
