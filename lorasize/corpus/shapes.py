"""The shapes of a record (TRL's, and key and value), and the passages that one holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lorasize.corpus.files import REFUSED, near, refusal
from lorasize.corpus.tables import Record, name_of
from lorasize.errors import CorpusError
from lorasize.records import Passage, PassageKind

PROMPT_NAMES = ("prompt", "key", "query")
TARGET_NAMES = ("completion", "value", "target")
PAIRS = (*zip(PROMPT_NAMES, TARGET_NAMES, strict=True), *product(PROMPT_NAMES, TARGET_NAMES))
ROLES = dict.fromkeys(PROMPT_NAMES, "prompt") | dict.fromkeys(TARGET_NAMES, "target")
ROLES |= {"messages": "messages", "text": "text"}
ACCEPTED = "prompt and completion (or key and value, query and target), messages, or text"

Turn = tuple[str, str]
Shape = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """Where a record stands, for its passages and its errors."""

    file: str
    line: int

    def error(self, message: str) -> CorpusError:
        """An error that names this place, on one line whatever the columns are called."""
        return CorpusError(f"{' '.join(message.split()):.600}", file=self.file, line=self.line)

    def passage(self, target: str, prompt: str = "", *, messages: Sequence[Turn] = (), text: bool = False) -> Passage:
        """A passage from here, not yet named."""
        kind: PassageKind = "text" if text else "record"
        return Passage(
            id="", file=self.file, line=self.line, prompt=prompt, target=target, messages=tuple(messages), kind=kind
        )


def shapes_of(fields: Mapping[str, str]) -> tuple[Shape, ...]:
    """The shapes a record may have, in order of preference: ("pair", prompt column, target column) and so on.

    Raises:
        CorpusError: An unknown field, one given twice, or fields of two shapes.
    """
    roles: dict[str, str] = {}
    for name, column in fields.items():
        if name not in ROLES:
            raise CorpusError(f"unknown field {name!r:.80}; a field is one of {', '.join(ROLES)}{near([name], ROLES)}")
        if ROLES[name] in roles:
            raise CorpusError(f"the field {name!r} is given twice under two names; give it once")
        roles[ROLES[name]] = column
    whole = tuple((role, column) for role, column in roles.items() if role in ("messages", "text"))
    if whole and len(roles) > 1:
        raise CorpusError(f"the fields {', '.join(fields)} belong to different shapes; name those of one shape")
    pairs = tuple(("pair", roles.get("prompt", prompt), roles.get("target", target)) for prompt, target in PAIRS)
    return whole or (pairs if roles else (*pairs, ("messages", "messages"), ("text", "text")))


def record_passages(at: Place, record: Record, shapes: tuple[Shape, ...]) -> Iterator[Passage]:
    """One passage for a pair or a text, one for each assistant turn of a chat."""
    shape = next((shape for shape in shapes if all(column in record for column in shape[1:])), None)
    if shape is None:
        asked = " and ".join(map(repr, shapes[0][1:])) + ", as asked"
        asked += near([column for column in shapes[0][1:] if column not in record], record)
        expected = ACCEPTED if shapes == shapes_of({}) else asked
        seen = ", ".join(map(str, record)) or "none"
        raise at.error(f"unknown shape: keys seen: {seen:.200}; expected {expected}")
    kind, *columns = shape
    if kind == "pair":
        yield _pair_passage(at, record, *columns)
    elif kind == "messages":
        yield from _chat_passages(at, _turns(at, record[columns[0]], columns[0]))
    else:
        yield at.passage(_target(at, record[columns[0]], columns[0]), text=True)


def _pair_passage(at: Place, record: Record, first: str, second: str) -> Passage:
    """The passage of a prompt and its completion, each text or (as TRL has it) chat turns."""
    prompt, completion = record[first], record[second]
    if isinstance(completion, list):
        turns = _turns(at, completion, second)
        if [role for role, _ in turns] != ["assistant"]:
            raise at.error(f"{second!r} must hold one assistant message and no other")
        completion = turns[0][1]
    target = _target(at, completion, second)
    if isinstance(prompt, list):
        return at.passage(target, messages=_turns(at, prompt, first))
    return at.passage(target, _string(at, prompt, first))


def _chat_passages(at: Place, turns: Sequence[Turn]) -> Iterator[Passage]:
    """One passage for each assistant turn, given all turns before it."""
    if all(role != "assistant" for role, _ in turns):
        raise at.error("no assistant message, so there is nothing to memorise")
    if turns[0][0] == "assistant":
        raise at.error("the first message is the assistant's; put a user message before it")
    for k, (role, content) in enumerate(turns):
        if role == "assistant":
            yield at.passage(_target(at, content, "content"), messages=turns[:k])


def _turns(at: Place, value: object, name: str) -> list[Turn]:
    """The chat turns (role, content), of which there is at least one."""
    if not isinstance(value, list) or not value:
        raise at.error(f"{name!r} must be a list of messages with role and content")
    return [_turn(at, message, name) for message in value]


def _turn(at: Place, message: object, name: str) -> Turn:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise at.error(f"each message in {name!r} must have role and content")
    more = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if more:
        raise at.error(f"a message has {more[0]!r:.80}, which would be lost; remove it")
    return _string(at, message["role"], "role"), _string(at, message["content"], "content")


def _target(at: Place, value: object, name: str) -> str:
    text = _string(at, value, name)
    if not text:
        raise at.error(f"{name!r} is empty, so there is nothing to memorise")
    return text


def _string(at: Place, value: object, name: str) -> str:
    """The value as text; a number as its JSON text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    if not isinstance(value, str):
        raise at.error(f"{name!r} is {name_of(value)}; it must be text or a number")
    found = REFUSED.search(value)
    if found:
        raise at.error(refusal(found[0]))
    return value
