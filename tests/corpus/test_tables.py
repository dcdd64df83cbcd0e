"""Corpora in CSV, TSV and Parquet: cells are exact; whatever is wrong is refused at its row."""

from __future__ import annotations

import csv
import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import Write, read, refusal


def test_csv_keeps_strings_and_counts_lines(write: Write) -> None:
    """NA, leading zeros and spaces stay; a quoted newline moves the next row's line, and stays CRLF."""
    path = write("book.csv", 'key,value\r\nNA,007\r\n"two\r\nlines"," 1,5 "\r\n\r\nlast,null\r\n')
    assert [(p.prompt, p.target, p.line) for p in read(path)] == [
        ("NA", "007", 2),
        ("two\r\nlines", " 1,5 ", 3),
        ("last", "null", 6),
    ]
    assert [(p.target, p.line) for p in read(write("mac.csv", "key,value\ra,b\rc,d"))] == [("b", 2), ("d", 3)]


def test_tsv_and_mapped_columns(write: Write) -> None:
    """A comma is text in TSV."""
    path = write("book.tsv", "id\tname\tnumber\n1\tHolm, Agnes\t04\n")
    (passage,) = read(path, fields={"prompt": "name", "completion": "number"})
    assert (passage.prompt, passage.target, passage.id) == ("Holm, Agnes", "04", "book.tsv:2")


CELL = st.text(st.sampled_from('ab,"\n\r\t '), min_size=1, max_size=6)


@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_csv_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Quotes, delimiters and newlines inside cells survive."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("key", "value"), *rows])
    path = tmp_path_factory.getbasetemp() / "cells.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert [(p.prompt, p.target) for p in read(path)] == rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("key,value\na,b\nc\n", "1 fields in this row, 2 in the header"),
        ('key,value\na,b\n"c"x,d\n', "malformed row"),
        ('key,value\na,b\n"c,d\n', "malformed row"),
        ("key,value\na,b\nc,\n", "'value' is empty"),
    ],
)
def test_bad_rows_are_refused_at_their_line(write: Write, text: str, said: str) -> None:
    """Too few fields, broken quotes, no target."""
    error = refusal(write("bad.csv", text))
    assert said in str(error)
    assert error.line == 3


def test_bad_headers_are_refused(write: Write) -> None:
    """A doubled name, or names that mean nothing here."""
    assert "names 'key' twice" in str(refusal(write("a.csv", "key,key\na,b\n")))
    assert "keys seen: name, number; expected" in str(refusal(write("b.csv", "name,number\na,b\n")))


def test_long_cells_are_read_and_the_limit_is_put_back(write: Write) -> None:
    """The csv module's own limit is 131072 characters, for the whole process."""
    limit = csv.field_size_limit()
    assert len(read(write("long.csv", "key,value\nk," + "x" * 200_000 + "\n"))[0].target) == 200_000
    assert csv.field_size_limit() == limit


def test_parquet(write: Write) -> None:
    """Rows are numbered from 1; chat columns work as in JSONL."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = write("a.parquet", b"")
    parquet.write_table(pyarrow.table({"key": ["NA", "b"], "value": [7, 8]}), path)
    assert [(p.prompt, p.target, p.line) for p in read(path)] == [("NA", "7", 1), ("b", "8", 2)]
    chat = [[{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]]
    parquet.write_table(pyarrow.table({"messages": chat}), path)
    assert [(p.messages, p.target) for p in read(path)] == [((("user", "u"),), "a")]
    assert "not a Parquet file" in str(refusal(write("b.parquet", b"nothing of the kind")))


def test_parquet_without_pyarrow_names_the_extra(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "lorasize[parquet]" in str(refusal(write("a.parquet", b"PAR1")))
