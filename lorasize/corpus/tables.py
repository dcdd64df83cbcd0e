"""JSON, JSONL, CSV, TSV and Parquet: records by the line at which they stand."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from lorasize.corpus.files import decode
from lorasize.errors import CorpusError

Record = Mapping[str, object]

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_HEADER = 10_000  # bytes of a header at most
_SPACE = " \t\r\n"  # what JSON takes for white space
_BLANK = re.compile(f"[{_SPACE}]*")


class Written(str):
    """A JSON number as the text it was written in, so that 1.50 stays 1.50."""

    __slots__ = ()

    @property
    def number(self) -> int | float:
        """The number that the text means."""
        return float(self) if any(letter in self for letter in ".eE") else int(self)


def json_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
    """Pairs (line at which it begins, object) of a list of objects, of a line each, or one after the other."""
    text, _ = decode(file, data)
    first, _, rest = text.lstrip(_SPACE).partition("\n")
    if first.startswith("["):
        yield from _checked(file, _items(text), "an item of the list")
    elif rest.strip(_SPACE) and _is_cut(first):
        yield from _checked(file, _values(text), "each value")
    else:
        yield from _lines(file, text)


def _lines(file: str, text: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield from _checked(file, _line(line, number), "a line")


def _line(line: str, number: int) -> Iterator[tuple[int, object]]:
    try:
        yield number, _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise _NotJson(f"{error.msg} at column {error.colno}", number) from None
    except (ValueError, RecursionError) as error:
        raise _NotJson(str(error), number) from None


def _checked(file: str, values: Iterator[tuple[int, object]], what: str) -> Iterator[tuple[int, Record]]:
    """The values, each of which must be an object."""
    try:
        for line, value in values:
            if not isinstance(value, dict):
                raise CorpusError(f"{what} must hold one JSON object, not {name_of(value)}", file=file, line=line)
            yield line, value
    except _NotJson as error:
        raise CorpusError(f"not JSON: {error}", file=file, line=error.line) from None


class _NotJson(Exception):
    """Something of a text is not JSON; it never leaves this module."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def _is_cut(first: str) -> bool:
    """Whether a line only begins an object, as where JSON is printed over several."""
    try:
        _DECODER.decode(first)
    except json.JSONDecodeError as error:
        return error.pos >= len(first.rstrip()) and first.startswith("{")
    except (ValueError, RecursionError):
        return False
    return False


def _items(text: str) -> Iterator[tuple[int, object]]:
    """Pairs (line, item) of a text that is one JSON list."""
    at = _skip(text, 0) + 1
    line, counted = 1, 0
    while True:
        at = _skip(text, at)
        if text.startswith("]", at) and counted == 0:
            break
        line, counted = line + text.count("\n", counted, at), at
        item, at = _value(text, at)
        yield line, item
        at = _skip(text, at)
        if not text.startswith(",", at):
            break
        at += 1
    if not text.startswith("]", at):
        raise _not_json(text, at, "a comma or the list's end is missing")
    if (more := _skip(text, at + 1)) < len(text):
        raise _not_json(text, more, "something follows the list")


def _values(text: str) -> Iterator[tuple[int, object]]:
    """Pairs (line, value) of a text that is one JSON value after the other."""
    at, line, counted = _skip(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        value, at = _value(text, at)
        yield line, value
        at = _skip(text, at)


def _skip(text: str, at: int) -> int:
    """Where white space that begins here ends."""
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


def _value(text: str, at: int) -> tuple[object, int]:
    """The JSON value that begins here, and where it ends."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _not_json(text, error.pos, error.msg) from None
    except (ValueError, RecursionError) as error:
        raise _not_json(text, at, str(error)) from None


def _not_json(text: str, at: int, message: str) -> _NotJson:
    before = text[:at]
    return _NotJson(f"{message} at column {at - before.rfind(chr(10))}", before.count("\n") + 1)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return record


_DECODER = json.JSONDecoder(
    parse_int=Written, parse_float=Written, parse_constant=_constant, object_pairs_hook=_distinct
)


def delimiter_of(data: bytes, usual: str) -> str:
    """What parts the header of a table: the usual delimiter, unless the header has none of it but another.

    Excel writes the list separator of its country, and may say so in a first line `sep=;`.
    """
    lines = data[:_HEADER].decode("utf-8-sig", "ignore").lstrip("\r\n").splitlines()
    header = lines[0] if lines else ""
    if header.startswith("sep=") and header[4:] in DELIMITERS:
        return header[-1]
    found = {delimiter: _fields(header, delimiter) for delimiter in (usual, *DELIMITERS)}
    return usual if found[usual] > 1 else max(found, key=lambda delimiter: found[delimiter])


def _fields(header: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([header], delimiter=delimiter), []))
    except csv.Error:
        return 0


def csv_records(file: str, data: bytes, delimiter: str = ",") -> Iterator[tuple[int, Record]]:
    """Pairs (line at which the row starts, row by column name). Every value stays the string it is."""
    text, _ = decode(file, data)
    rows = _csv_rows(file, text, delimiter)
    header = next((row for _, row in rows), [])
    if header == ["sep=", ""]:  # how Excel names the delimiter
        header = next((row for _, row in rows), [])
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise CorpusError(f"the header names {twice[0]!r:.80} twice; rename one", file=file, line=1)
    for line, row in rows:
        if len(row) != len(header):
            seen = f"{len(row)} fields in this row, {len(header)} in the header"
            raise CorpusError(f"{seen}; put quotes around a field that holds {delimiter!r}", file=file, line=line)
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
            way = "put quotes around a field that holds quotes, and double those"
            raise CorpusError(f"malformed row: {error}; {way}", file=file, line=line) from None
        finally:
            csv.field_size_limit(limit)
        if row is None:
            return
        if row:
            yield line, row


def parquet_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
    """Pairs (row number from 1, row by column name). Single-precision numbers get the fewest digits that tell them.

    Raises:
        CorpusError: pyarrow is not installed, or the file is not Parquet.
    """
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        message = "reading Parquet needs pyarrow: pip install 'lorasize[parquet]'"
        raise CorpusError(message, file=file) from None
    try:
        table = parquet.read_table(io.BytesIO(data))
        shorten = {field.name: _shortened(field.type) for field in table.schema}
        rows = table.to_pylist()
    except Exception as error:  # pyarrow raises a dozen kinds
        why = " ".join(str(error).split())
        raise CorpusError(f"not a Parquet file: {why:.200}; fetch or write it again", file=file) from None
    for number, row in enumerate(rows, start=1):
        yield number, {name: shorten[name](value) for name, value in row.items()}


def _shortened(kind: Any) -> Callable[[Any], Any]:
    """What makes a value of this Arrow type one whose text has no digits that it never held."""
    import numpy as np

    types: Any = importlib.import_module("pyarrow.types")
    for is_kind, narrow in ((types.is_float32, np.float32), (types.is_float16, np.float16)):
        if is_kind(kind):
            return lambda value: value if value is None else float(str(narrow(value)))
    if types.is_list(kind) or types.is_large_list(kind):
        inner = _shortened(kind.value_type)
        return lambda value: value if value is None else [inner(one) for one in value]
    if types.is_struct(kind):
        parts = {field.name: _shortened(field.type) for field in kind}
        return lambda value: value if value is None else {name: parts[name](one) for name, one in value.items()}
    return lambda value: value


def name_of(value: object) -> str:
    """What JSON calls a value like this."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    names |= {Written: "a number", bytes: "bytes"}
    return names.get(type(value), type(value).__name__)
