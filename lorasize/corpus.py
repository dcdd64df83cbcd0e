"""Corpus files → passages. Knows formats, bytes and lines; nothing of tokens or models.

Text and Markdown become one passage a block (lines between blank lines), with the byte offsets of the block in its
file. JSONL, CSV, TSV and Parquet become one passage a record, prompt and target verbatim. A text passage leaves here
without a prompt: `tokens` packs blocks and gives each passage its address.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import importlib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from lorasize.errors import CorpusError
from lorasize.records import CorpusFile, Passage, PassageKind, Reading

DEFAULT_READING = Reading()
MAX_BYTES = 10**9  # of one file
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SUFFIXES |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
PROMPT_NAMES = ("prompt", "key", "query")
TARGET_NAMES = ("completion", "value", "target")
PAIRS = (*zip(PROMPT_NAMES, TARGET_NAMES, strict=True), *product(PROMPT_NAMES, TARGET_NAMES))
ROLES = dict.fromkeys(PROMPT_NAMES, "prompt") | dict.fromkeys(TARGET_NAMES, "target")
ROLES |= {"messages": "messages", "text": "text"}
ACCEPTED = "prompt and completion (or key and value, query and target), messages, or text"

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")
_REFUSED = re.compile(r"[\x00\ud800-\udfff]")

Record = Mapping[str, object]
Turn = tuple[str, str]
Shape = tuple[str, ...]


# ---------------------------------------------------------------- the door
def read_corpus(
    paths: Sequence[Path], reading: Reading = DEFAULT_READING
) -> tuple[list[Passage], tuple[CorpusFile, ...]]:
    """Every passage of the files in order, and the files with their digests.

    Args:
        paths: Corpus files; each at most once.
        reading: Format, and names of the columns where they are not the usual ones.

    Raises:
        CorpusError: A file is missing, not a file, not UTF-8, malformed or without a passage; the place is named.
    """
    if not paths:
        raise CorpusError("no corpus file was named")
    shapes = _shapes(reading.fields)
    passages: list[Passage] = []
    files: list[CorpusFile] = []
    seen: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise CorpusError("this file is named twice; name it once", file=str(path))
        seen.add(real)
        data = _read_bytes(path)
        found = list(_read_passages(path, data, reading.format, shapes))
        if not found:
            raise CorpusError("no passage in it: the file is empty or blank", file=str(path))
        passages += found
        files.append(CorpusFile(path=str(path), sha256=hashlib.sha256(data).hexdigest()))
    return unique_ids(passages), tuple(files)


def corpus_sha256(files: Iterable[CorpusFile]) -> str:
    """One digest (hex) of the files' contents in order; where the files lie does not change it."""
    return hashlib.sha256("\n".join(file.sha256 for file in files).encode()).hexdigest()


def unique_ids(passages: Iterable[Passage]) -> list[Passage]:
    """The passages named `<file name>:<line>`, with `#2`, `#3`… after it when a place holds several."""
    counts: Counter[str] = Counter()
    named = []
    for passage in passages:
        place = f"{Path(passage.file).name}:{passage.line}"
        counts[place] += 1
        suffix = f"#{counts[place]}" if counts[place] > 1 else ""
        named.append(passage.model_copy(update={"id": place + suffix}))
    return named


def _read_passages(path: Path, data: bytes, chosen: str, shapes: tuple[Shape, ...]) -> Iterator[Passage]:
    file = str(path)
    kind = SUFFIXES.get(path.suffix.lower(), "text") if chosen == "auto" else chosen
    if kind in ("text", "markdown"):
        yield from _text_passages(file, data, fences=kind == "markdown")
        return
    tsv: Any = partial(_csv_records, delimiter="\t")
    readers = {"jsonl": _jsonl_records, "csv": _csv_records, "tsv": tsv, "parquet": _parquet_records}
    for line, record in readers[kind](file, data):
        yield from _record_passages(_Place(file, line), record, shapes)


# ---------------------------------------------------------------- bytes
def _read_bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size <= MAX_BYTES and path.is_file():
            return path.read_bytes()
    except FileNotFoundError:
        beside = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        meant = _near([path.name], beside, str(path).removesuffix(path.name))
        raise CorpusError("there is no such file" + meant, file=str(path)) from None
    except OSError as error:
        raise CorpusError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    if path.is_dir():
        raise CorpusError("this is a folder; name the files in it", file=str(path))
    why = f"larger than {MAX_BYTES // 10**9} GB" if path.is_file() else "not a regular file"
    raise CorpusError(f"{why}, so it is not read", file=str(path))


def _near(names: Iterable[str], known: Collection[str], folder: str = "") -> str:
    near = [found for name in names for found in difflib.get_close_matches(name, list(known), n=1)]
    return f"; did you mean {folder}{' and '.join(near)}?" if near else ""


def _decode(file: str, data: bytes) -> tuple[str, int]:
    """The text and the byte offset at which it begins (3 after a byte order mark). Newlines stay as they are."""
    skip = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = skip + error.start
        line = data.count(b"\n", 0, at) + 1
        message = f"the byte at offset {at} (0x{data[at]:02x}) is not UTF-8; save the file as UTF-8"
        raise CorpusError(message, file=file, line=line) from None
    if "\x00" in text:
        raise CorpusError(_refusal("\x00"), file=file, line=text.count("\n", 0, text.index("\x00")) + 1)
    return text, skip


def _refusal(character: str) -> str:
    name = "NUL" if character == "\x00" else "a lone surrogate"
    return f"{name} (U+{ord(character):04X}) has no place in text; remove it"


# ---------------------------------------------------------------- text and Markdown
def _text_passages(file: str, data: bytes, *, fences: bool) -> Iterator[Passage]:
    text, at = _decode(file, data)
    line, carried = 1, ""
    for gap, block in _blocks(text, fences=fences):
        line += gap.count("\n")
        start = at + len(gap.encode())
        target = block.removesuffix("\n").removesuffix("\r") if block.endswith("\n") else block
        end = start + len(target.encode())
        yield Passage(
            id="", file=file, line=line, prompt="", target=target, start=start, end=end, kind="text", gap=carried + gap
        )
        carried = block[len(target) :]
        at = end + len(carried)
        line += block.count("\n")


def _blocks(text: str, *, fences: bool) -> Iterator[tuple[str, str]]:
    """Pairs (blank lines before, block with its final newline). With `fences`, no cut inside ``` or ~~~."""
    gap, block, fence = "", [], ""
    for line in io.StringIO(text, newline="\n"):
        if fence or line.strip(" \t\r\n"):
            block.append(line)
            fence = _fence_after(fence, line) if fences else ""
            continue
        if block:
            yield gap, "".join(block)
            gap, block = "", []
        gap += line
    if block:
        yield gap, "".join(block)


def _fence_after(fence: str, line: str) -> str:
    """The fence that is open after this line, "" when none is."""
    match = _FENCE.match(line)
    if match is None:
        return fence
    marks, info = match[1], match[2].strip()
    if not fence:
        return "" if marks[0] == "`" and "`" in info else marks
    closes = marks[0] == fence[0] and len(marks) >= len(fence) and not info
    return "" if closes else fence


# ---------------------------------------------------------------- JSONL, CSV, Parquet: records by line
def _jsonl_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
    """Pairs (line, object). Numbers arrive as the text they were written in, so that 1.50 stays 1.50."""
    text, _ = _decode(file, data)
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(
                line, parse_int=str, parse_float=str, parse_constant=_not_json, object_pairs_hook=_distinct
            )
        except json.JSONDecodeError as error:
            raise CorpusError(f"not JSON: {error.msg} at column {error.colno}", file=file, line=number) from None
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"not JSON: {error}", file=file, line=number) from None
        if not isinstance(record, dict):
            raise CorpusError(f"a line must hold one JSON object, not {_name(record)}", file=file, line=number)
        yield number, record


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return record


def _csv_records(file: str, data: bytes, delimiter: str = ",") -> Iterator[tuple[int, Record]]:
    """Pairs (line at which the row starts, row by column name). Every value stays the string it is."""
    text, _ = _decode(file, data)
    rows = _csv_rows(file, text, delimiter)
    header = next((row for _, row in rows), [])
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise CorpusError(f"the header names {twice[0]!r:.80} twice", file=file, line=1)
    for line, row in rows:
        if len(row) != len(header):
            raise CorpusError(f"{len(row)} fields in this row, {len(header)} in the header", file=file, line=line)
        yield line, dict(zip(header, row, strict=True))


def _csv_rows(file: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Pairs (line at which the row starts, fields), blank lines left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        limit = csv.field_size_limit(max(len(text), 1))  # process-wide, so it is put back before anyone else runs
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise CorpusError(f"malformed row: {error}", file=file, line=line) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def _parquet_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
    """Pairs (row number from 1, row by column name).

    Raises:
        CorpusError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        message = "reading Parquet needs pyarrow: pip install 'lorasize[parquet]'"
        raise CorpusError(message, file=file) from None
    try:
        rows = parquet.read_table(io.BytesIO(data)).to_pylist()
    except Exception as error:  # pyarrow raises a dozen kinds
        raise CorpusError(f"not a Parquet file: {' '.join(str(error).split()):.200}", file=file) from None
    yield from enumerate(rows, start=1)


# ---------------------------------------------------------------- records → passages
@dataclass(frozen=True)
class _Place:
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


def _shapes(fields: Mapping[str, str]) -> tuple[Shape, ...]:
    """The shapes a record may have, in order of preference: ("pair", prompt column, target column) and so on.

    Raises:
        CorpusError: An unknown field, one given twice, or fields of two shapes.
    """
    roles: dict[str, str] = {}
    for name, column in fields.items():
        if name not in ROLES:
            raise CorpusError(f"unknown field {name!r:.80}; a field is one of {', '.join(ROLES)}{_near([name], ROLES)}")
        if ROLES[name] in roles:
            raise CorpusError(f"the field {name!r} is given twice under two names; give it once")
        roles[ROLES[name]] = column
    whole = tuple((role, column) for role, column in roles.items() if role in ("messages", "text"))
    if whole and len(roles) > 1:
        raise CorpusError(f"the fields {', '.join(fields)} belong to different shapes; name those of one shape")
    pairs = tuple(("pair", roles.get("prompt", prompt), roles.get("target", target)) for prompt, target in PAIRS)
    return whole or (pairs if roles else (*pairs, ("messages", "messages"), ("text", "text")))


def _record_passages(at: _Place, record: Record, shapes: tuple[Shape, ...]) -> Iterator[Passage]:
    """One passage for a pair or a text, one for each assistant turn of a chat."""
    shape = next((shape for shape in shapes if all(column in record for column in shape[1:])), None)
    if shape is None:
        asked = " and ".join(map(repr, shapes[0][1:])) + ", as asked"
        asked += _near([column for column in shapes[0][1:] if column not in record], record)
        expected = ACCEPTED if shapes == _shapes({}) else asked
        seen = ", ".join(map(str, record)) or "none"
        raise at.error(f"unknown shape: keys seen: {seen:.200}; expected {expected}")
    kind, *columns = shape
    if kind == "pair":
        yield _pair_passage(at, record, *columns)
    elif kind == "messages":
        yield from _chat_passages(at, _turns(at, record[columns[0]], columns[0]))
    else:
        yield at.passage(_target(at, record[columns[0]], columns[0]), text=True)


def _pair_passage(at: _Place, record: Record, first: str, second: str) -> Passage:
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


def _chat_passages(at: _Place, turns: Sequence[Turn]) -> Iterator[Passage]:
    """One passage for each assistant turn, given all turns before it."""
    if all(role != "assistant" for role, _ in turns):
        raise at.error("no assistant message, so there is nothing to memorise")
    if turns[0][0] == "assistant":
        raise at.error("the first message is the assistant's; put a user message before it")
    for k, (role, content) in enumerate(turns):
        if role == "assistant":
            yield at.passage(_target(at, content, "content"), messages=turns[:k])


def _turns(at: _Place, value: object, name: str) -> list[Turn]:
    """The chat turns (role, content), of which there is at least one."""
    if not isinstance(value, list) or not value:
        raise at.error(f"{name!r} must be a list of messages with role and content")
    return [_turn(at, message, name) for message in value]


def _turn(at: _Place, message: object, name: str) -> Turn:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise at.error(f"each message in {name!r} must have role and content")
    more = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if more:
        raise at.error(f"a message has {more[0]!r:.80}, which would be lost; remove it")
    return _string(at, message["role"], "role"), _string(at, message["content"], "content")


def _target(at: _Place, value: object, name: str) -> str:
    text = _string(at, value, name)
    if not text:
        raise at.error(f"{name!r} is empty, so there is nothing to memorise")
    return text


def _string(at: _Place, value: object, name: str) -> str:
    """The value as text; a number as its JSON text."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return json.dumps(value)
    if not isinstance(value, str):
        raise at.error(f"{name!r} is {_name(value)}; it must be text or a number")
    found = _REFUSED.search(value)
    if found:
        raise at.error(_refusal(found[0]))
    return value


def _name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)
