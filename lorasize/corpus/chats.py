"""Chats: the turns of a record, in OpenAI's words or ShareGPT's, and the passages that the assistant's turns make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lorasize.corpus.left_out import LeftOut, is_blank
from lorasize.corpus.place import Place
from lorasize.corpus.tables import Record, name_of
from lorasize.records import Passage

BESIDE = ("system", "tools", "chat_template_kwargs")  # columns that a chat uses where they stand beside it
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "observation": "tool"}
_ROLES |= {"function_response": "tool"}  # ShareGPT's words; those that are roles already stay
_CALLS = ("tool_calls", "function_call")
_WEIGHTS = ("weight", "train", "masked")  # OpenAI's and axolotl's words for turns that are to train nothing


@dataclass(frozen=True)
class Turn:
    """A turn of a chat.

    Attributes:
        role: Who speaks.
        content: What is said.
        more: What else the chat template is given of it.
        silent: Why it trains nothing though it is the assistant's; "" where it does.
    """

    role: str
    content: str
    more: Mapping[str, object] = field(default_factory=dict)
    silent: str = ""


def read_turns(at: Place, value: object, name: str) -> list[Turn]:
    """The chat turns, of which there is at least one."""
    if not isinstance(value, list) or not value:
        raise at.error(f"{name!r} must be a list of messages with role and content (or from and value)")
    return [_turn(at, message, f"message {number} in {name!r}") for number, message in enumerate(value, start=1)]


def _turn(at: Place, message: object, name: str) -> Turn:
    if not isinstance(message, dict):
        raise at.error(f"{name} is {name_of(message)}; it must have role and content, or from and value")
    said = {key: value for key, value in message.items() if not is_blank(value)}
    speaker, words = ("from", "value") if "from" in said and "role" not in said else ("role", "content")
    calls = any(key in said for key in _CALLS)
    if speaker not in said or words not in message and not calls:
        seen = ", ".join(map(str, message)) or "nothing"
        raise at.error(f"{name} must have role and content, or from and value; it has {seen:.200}")
    role = at.string(said[speaker], speaker)
    role = _ROLES.get(role, role) if speaker == "from" else role
    content = "" if calls and words not in said else at.string(_parts(at, message[words]), words)
    silent = _why_silent(at, role, said, calls=calls)
    more = {key: value for key, value in said.items() if key not in (speaker, words, *_WEIGHTS)}
    if role == "assistant" and not silent and more:
        raise at.error(f"{name} is the assistant's and has {next(iter(more))!r:.80}, which would be lost; remove it")
    return Turn(role, content, at.plain(more), silent)


def _parts(at: Place, content: object) -> object:
    """Content in parts, as OpenAI has it, as their text."""
    if not isinstance(content, list):
        return content
    parts = [part for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(parts) < len(content) or any(part.get("type", "text") != "text" for part in parts):
        kinds = {str(part.get("type")) for part in content if isinstance(part, dict)} - {"text", "None"}
        seen = f" of parts such as {sorted(kinds)[0]:.40}" if kinds else ""
        raise at.error(f"'content' is a list{seen}; it must be text, or parts of the type text")
    return "".join(part["text"] for part in parts)


def _why_silent(at: Place, role: str, said: Mapping[str, object], *, calls: bool) -> str:
    if role == "function_call":
        raise at.error("a turn of ShareGPT's function_call is not rendered; write it as an assistant's with tool_calls")
    if role != "assistant":
        return ""
    if calls:
        return "as the assistant calls a tool there: they are given, not memorised"
    weight = {key: said[key] for key in _WEIGHTS if key in said}
    off = any(str(value).lower() in ("true", "1") if key == "masked" else str(value).lower() in ("false", "0", "0.0")
              for key, value in weight.items())  # fmt: skip
    return "as the record says itself" if off else ""


def with_system(at: Place, turns: Sequence[Turn], column: object, default: str | None) -> list[Turn]:
    """The turns after the system turn of their record's column, or else the one that the user gave for all."""
    own = turns[0].role in ("system", "developer")
    if not is_blank(column):
        text = at.string(column, "system")
        if own and turns[0].content != text:
            raise at.error("the column 'system' says something else than the first message; keep one of them")
        return list(turns) if own else [Turn("system", text), *turns]
    return [Turn("system", default), *turns] if default and not own else list(turns)


def chat_passages(
    at: Place, turns: Sequence[Turn], record: Record, left_out: LeftOut, first: int = 0
) -> Iterator[Passage]:
    """One passage for each turn of the assistant's from the first of these on, given all turns before it."""
    trained = [k for k, turn in enumerate(turns) if k >= first and turn.role == "assistant" and not turn.silent]
    if not trained:
        raise at.error("no assistant message, so there is nothing to memorise; add one, or take the record out")
    if turns[0].role == "assistant":
        raise at.error("the first message is the assistant's; put a user message before it")
    for why in dict.fromkeys(turn.silent for turn in turns[first:] if turn.silent):
        left_out.silent(str(at), why)
    if after := [turn.role for turn in turns[trained[-1] + 1 :] if not turn.silent]:
        left_out.silent(f"{at} ({', '.join(after):.80})", "as no turn of the assistant's follows")
    for k in trained:
        target = at.target(turns[k].content, "content")
        messages = [(turn.role, turn.content) for turn in turns[:k]]
        yield at.passage(target, messages=messages, chat=_chat(at, turns[:k], record))


def _chat(at: Place, turns: Sequence[Turn], record: Record) -> str:
    """JSON of what the template is given besides role and content."""
    beside: dict[str, object] = {}
    if any(turn.more for turn in turns):
        beside["messages"] = [_message(turn) for turn in turns]
    for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
        if record.get(name) not in (None, "", [], {}) and (given := at.parsed(record[name], name, kind)):
            beside[name] = given
    return at.as_json(beside) if beside else ""


def _message(turn: Turn) -> dict[str, object]:
    return {"role": turn.role, **({"content": turn.content} if turn.content or not turn.more else {}), **turn.more}
