"""Corpus files → passages. Knows formats, bytes and lines; nothing of tokens or models.

Text and Markdown become one passage a block (lines between blank lines), with the byte offsets of the block in its
file. JSONL, CSV, TSV and Parquet become one passage a record, prompt and target verbatim. A text passage leaves here
without a prompt: `tokens` packs blocks and gives each passage its address.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lorasize.corpus.files import decode, read_bytes
from lorasize.corpus.shapes import Place, Shape, record_passages, shapes_of
from lorasize.corpus.tables import csv_records, jsonl_records, parquet_records
from lorasize.errors import CorpusError
from lorasize.records import CorpusFile, Passage, Reading

DEFAULT_READING = Reading()
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SUFFIXES |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}

_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")


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
    shapes = shapes_of(reading.fields)
    passages: list[Passage] = []
    files: list[CorpusFile] = []
    seen: set[str] = set()
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise CorpusError("this file is named twice; name it once", file=str(path))
        seen.add(real)
        data = read_bytes(path)
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
    tsv: Any = partial(csv_records, delimiter="\t")
    readers = {"jsonl": jsonl_records, "csv": csv_records, "tsv": tsv, "parquet": parquet_records}
    for line, record in readers[kind](file, data):
        yield from record_passages(Place(file, line), record, shapes)


def _text_passages(file: str, data: bytes, *, fences: bool) -> Iterator[Passage]:
    text, at = decode(file, data)
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
