"""The shapes of a record (TRL's, Alpaca's, ShareGPT's, pairs by their usual names), and the passages it holds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from lorasize.corpus.chats import BESIDE, Turn, chat_passages, read_turns, with_system
from lorasize.corpus.files import near
from lorasize.corpus.left_out import LeftOut, is_blank
from lorasize.corpus.place import Place
from lorasize.corpus.tables import Record
from lorasize.errors import CorpusError
from lorasize.records import Passage, Reading

PROMPT_NAMES = ("prompt", "key", "query")
TARGET_NAMES = ("completion", "value", "target")
PAIRS = (*zip(PROMPT_NAMES, TARGET_NAMES, strict=True), *product(PROMPT_NAMES, TARGET_NAMES))
ROLES = dict.fromkeys(PROMPT_NAMES, "prompt") | dict.fromkeys(TARGET_NAMES, "target")
ROLES |= {"messages": "messages", "text": "text"}
ACCEPTED = (
    "prompt and completion (or key and value, query and target, question and answer, instruction and output), "
    "prompts and completion, messages, conversations, or text"
)
FIELD = re.compile(r"\{([^{}\n]+)\}")  # of a prompt template
OWN_FIELDS = ("prompt", "file", "number")  # of a prompt template; any other is a column


@dataclass(frozen=True)
class Shape:
    """What a record is read as: its kind, and the columns that it must have."""

    kind: Literal["pair", "prompts", "alpaca", "chat", "text", "target"]
    columns: tuple[str, ...]


_MORE = (
    *(Shape("prompts", ("prompts", target)) for target in TARGET_NAMES),
    Shape("chat", ("conversations",)),
    Shape("pair", ("question", "answer")),
    Shape("alpaca", ("instruction", "output")),
)


@dataclass(frozen=True)
class Asked:
    """How records are to be read: the reading, the shapes by it, and what is left out, to be said."""

    reading: Reading
    shapes: tuple[Shape, ...]
    left_out: LeftOut


def shapes_of(fields: Mapping[str, str], template: str | None = None) -> tuple[Shape, ...]:
    """The shapes a record may have, in order of preference.

    Where the prompt template names columns and not `{prompt}`, a record needs no more than what it names and a target.

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
    whole = roles.keys() & {"messages", "text"}
    if whole and len(roles) > 1:
        raise CorpusError(f"the fields {', '.join(fields)} belong to different shapes; name those of one shape")
    if "messages" in roles:
        return (Shape("chat", (roles["messages"],)),)
    if "text" in roles:
        return (Shape("text", (roles["text"],)),)
    pairs = tuple(Shape("pair", (roles.get("prompt", one), roles.get("target", other))) for one, other in PAIRS)
    filled = "prompt" not in roles and template_fields(template) and "{prompt}" not in (template or "")
    targets = (roles["target"],) if "target" in roles else TARGET_NAMES
    alone = tuple(Shape("target", (target,)) for target in targets) if filled else ()
    if roles:
        return (*pairs, *alone)
    return (*pairs, Shape("chat", ("messages",)), Shape("text", ("text",)), *_MORE, *alone)


def is_header(names: Sequence[str]) -> bool:
    """Whether these are names of columns that make pairs."""
    return any(len(shape.columns) > 1 and set(shape.columns) <= set(names) for shape in shapes_of({}))


def template_fields(template: str | None) -> tuple[str, ...]:
    """What stands in braces in a prompt template and may be a column, in order."""
    names = dict.fromkeys(FIELD.findall(template or ""))
    return tuple(name for name in names if name not in OWN_FIELDS)


def unknown_field(template: str, columns: Collection[str] = ()) -> str:
    """What is wrong with a template that names neither a field of its own nor a column; "" when nothing is."""
    wrong = [name for name in template_fields(template) if re.fullmatch(r"\w+", name) and name not in columns]
    known = ", ".join(f"{{{name}}}" for name in OWN_FIELDS)
    return f"the prompt template names {{{wrong[0]}}}; it may name {known}" if wrong else ""


def record_passages(at: Place, record: Record, asked: Asked) -> Iterator[Passage]:
    """One passage for a pair or a text, one for each assistant turn of a chat."""
    shape = next((shape for shape in asked.shapes if all(column in record for column in shape.columns)), None)
    if shape is None:
        raise at.error(_unknown(record, asked.shapes))
    yield from _READ[shape.kind](at, record, shape.columns, asked)


def _unknown(record: Record, shapes: tuple[Shape, ...]) -> str:
    """What is said of a record that has no known shape."""
    seen = f"unknown shape: keys seen: {', '.join(map(str, record)) or 'none':.200}"
    first = shapes[0].columns
    if not set(shapes_of({})) <= set(shapes):
        missing = near([column for column in first if column not in record], record)
        return f"{seen}; expected {' and '.join(map(repr, first))}, as asked{missing}"
    if {"chosen", "rejected"} <= record.keys():
        return f"{seen}; these are preferences: name the column to memorise, chosen, as the field completion"
    lists = [name for name, value in record.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(record) > 0 and len(lists) == 1:
        return f"{seen}; expected {ACCEPTED}; where {lists[0]!r:.40} holds the records, save that list alone"
    meant = near([str(column) for column in record], {name for shape in shapes for name in shape.columns})
    return f"{seen}; expected {ACCEPTED}{meant}"


def _pair(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    """A prompt and its completion, each text or (as TRL has it) chat turns."""
    first, second = columns
    prompt, completion = record[first], record[second]
    turns = read_turns(at, completion, second) if isinstance(completion, list) else []
    if isinstance(prompt, list):
        answer = turns or [Turn("assistant", at.target(completion, second))]
        if answer[0].role != "assistant":
            raise at.error(f"{second!r} must begin with an assistant message")
        yield from _chat(at, record, columns, [*read_turns(at, prompt, first), *answer], len(answer), asked)
        return
    if turns and [turn.role for turn in turns] != ["assistant"]:
        raise at.error(f"{second!r} must hold one assistant message and no other, as the prompt is no chat")
    target = at.target(turns[0].content if turns else completion, second)
    yield _with_columns(at, at.passage(target, at.string(prompt, first)), record, columns[:1], columns, asked)


def _prompts(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    """A passage for each of several prompts, all with one completion."""
    prompts = record[columns[0]]
    if not isinstance(prompts, list) or not prompts:
        raise at.error(f"{columns[0]!r} must be a list of prompts, each text or a list of messages")
    for prompt in prompts:
        yield from _pair(at, {**record, columns[0]: prompt}, columns, asked)


def _alpaca(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    """An instruction, its input on the next line where there is one, and the output.

    Where the prompt template names the input itself, the prompt is the instruction alone.
    """
    instruction, output = columns
    names = [instruction, *(() if "input" in template_fields(asked.reading.prompt_template) else ("input",))]
    parts = [at.string(record[name], name) for name in names if not is_blank(record.get(name))]
    passage = at.passage(at.target(record[output], output), "\n".join(parts))
    yield _with_columns(at, passage, record, (instruction, "input"), (*columns, "input"), asked)


def _messages(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    yield from _chat(at, record, columns, read_turns(at, record[columns[0]], columns[0]), None, asked)


def _chat(
    at: Place, record: Record, columns: tuple[str, ...], turns: list[Turn], last: int | None, asked: Asked
) -> Iterator[Passage]:
    """The passages of a chat, of all its turns or of its last ones."""
    turns = with_system(at, turns, record.get("system"), asked.reading.system)
    asked.left_out.columns(at.file, at.line, record, (*columns, *BESIDE))
    if asked.reading.prompt_template is not None:
        asked.left_out.say("The prompt template is not used for chats: the model's chat template renders them.")
    yield from chat_passages(at, turns, record, asked.left_out, 0 if last is None else len(turns) - last)


def _text(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    passage = at.passage(at.target(record[columns[0]], columns[0]), text=True)
    yield _with_columns(at, passage, record, (), columns, asked)


def _target(at: Place, record: Record, columns: tuple[str, ...], asked: Asked) -> Iterator[Passage]:
    """A completion whose prompt is what the prompt template makes of the other columns."""
    passage = at.passage(at.target(record[columns[0]], columns[0]))
    yield _with_columns(at, passage, record, (), columns, asked)


_READ = {"pair": _pair, "prompts": _prompts, "alpaca": _alpaca, "chat": _messages, "text": _text, "target": _target}


def _with_columns(
    at: Place, passage: Passage, record: Record, prompt: Sequence[str], used: Sequence[str], asked: Asked
) -> Passage:
    """The passage with the columns that the prompt template names; columns that nothing uses are noted.

    Raises:
        CorpusError: the template names a column that is not there, or none of those that make the prompt.
    """
    template = asked.reading.prompt_template
    named = [name for name in template_fields(template) if name in record]
    asked.left_out.columns(at.file, at.line, record, (*used, *named))
    if template is None:
        return passage
    lost = [name for name in prompt if name not in named and not is_blank(record.get(name))]
    if lost and "{prompt}" not in template:
        told = f"the prompt template has no {{prompt}}, so this passage would lose its prompt ({lost[0]!r:.80}); add it"
        raise at.error(told)
    if wrong := unknown_field(template, named):
        raise at.error(f"{wrong} and this record's columns{near(template_fields(template), record)}")
    columns = tuple((name, "" if is_blank(record[name]) else at.string(record[name], name)) for name in named)
    return passage.model_copy(update={"columns": columns})
