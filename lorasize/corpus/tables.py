"""JSONL, CSV, TSV and Parquet: records by the line at which they stand."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from lorasize.corpus.files import decode
from lorasize.errors import CorpusError

Record = Mapping[str, object]


def jsonl_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
    """Pairs (line, object). Numbers arrive as the text they were written in, so that 1.50 stays 1.50."""
    text, _ = decode(file, data)
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
            raise CorpusError(f"a line must hold one JSON object, not {name_of(record)}", file=file, line=number)
        yield number, record


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return record


def csv_records(file: str, data: bytes, delimiter: str = ",") -> Iterator[tuple[int, Record]]:
    """Pairs (line at which the row starts, row by column name). Every value stays the string it is."""
    text, _ = decode(file, data)
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


def parquet_records(file: str, data: bytes) -> Iterator[tuple[int, Record]]:
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


def name_of(value: object) -> str:
    """What JSON calls a value like this."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)
