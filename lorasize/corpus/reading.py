"""Corpus files → passages. Knows formats, bytes and lines; nothing of tokens or models.

Text and Markdown become one passage a block (lines between blank lines), with the byte offsets of the block in its
file. JSON, JSONL, CSV, TSV and Parquet become one passage a record, prompt and target verbatim. A text passage leaves
here without a prompt: `tokens` packs blocks and gives each passage its address.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasize.corpus.files import PACKED, as_planned, decode, read_bytes, unpacked
from lorasize.corpus.gather import gather
from lorasize.corpus.left_out import LeftOut
from lorasize.corpus.looks import refuse_other
from lorasize.corpus.place import Place
from lorasize.corpus.shapes import Asked, record_passages, shapes_of
from lorasize.corpus.tables import DELIMITERS, Record, csv_records, delimiter_of, json_records, parquet_records
from lorasize.errors import CorpusError
from lorasize.records import CorpusFile, Passage, Reading

DEFAULT_READING = Reading()
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
SUFFIXES |= {".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}

_LINE_ENDS = (
    "{file}: only its line ends changed, as git's core.autocrlf does; it is read with those it had. "
    "A line `* -text` in .gitattributes keeps them."
)
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})(.*)")


@dataclass(frozen=True)
class Corpus:
    """What was read.

    Attributes:
        passages: Every passage, in order.
        files: The files with their digests.
        notes: What the user must know: what is not memorised, and what was guessed.
        unused_columns: Columns that are neither used nor named.
        named: What was named, where it is not the files themselves.
    """

    passages: list[Passage]
    files: tuple[CorpusFile, ...]
    notes: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


def read_corpus(
    paths: Sequence[Path | str], reading: Reading = DEFAULT_READING, planned: Sequence[CorpusFile] = ()
) -> tuple[list[Passage], tuple[CorpusFile, ...]]:
    """The passages and files that `read` finds."""
    corpus = read(paths, reading, planned)
    return corpus.passages, corpus.files


def read(
    paths: Sequence[Path | str], reading: Reading = DEFAULT_READING, planned: Sequence[CorpusFile] = ()
) -> Corpus:
    """Every passage of the files in order, the files with their digests, and what is not memorised of them.

    Args:
        paths: Corpus files, each at most once; folders, patterns and whatever else `gather` knows.
        reading: Format, and names of the columns where they are not the usual ones.
        planned: The files as a plan has them. One of which only the line ends changed is read with those it had.

    Raises:
        CorpusError: A file is missing, not a file, not UTF-8, malformed or without a passage; the place is named.
    """
    if not paths:
        raise CorpusError("no corpus file was named")
    left_out = LeftOut(strict=reading.columns == "strict")
    asked = Asked(reading, shapes_of(reading.fields, reading.prompt_template), left_out)
    passages: list[Passage] = []
    files: list[CorpusFile] = []
    seen: set[str] = set()
    known = {file.path: file.sha256 for file in planned}
    gathered = gather(paths)
    for note in gathered.notes:
        left_out.say(note)
    for path in gathered.files:
        if (real := os.path.realpath(path)) in seen:
            raise CorpusError("this file is named twice; name it once", file=str(path))
        seen.add(real)
        data = read_bytes(path)
        if (was := known.get(str(path))) is not None and (before := as_planned(data, was)) != data:
            data = before
            left_out.say(_LINE_ENDS.format(file=path))
        found = list(_read_passages(path, data, asked))
        if not found and path in gathered.found:
            left_out.say(f"{path}: not read, as it is empty or blank.")
            continue
        if not found:
            raise CorpusError("no passage in it: the file is empty or blank", file=str(path))
        passages += found
        files.append(CorpusFile(path=str(path), sha256=hashlib.sha256(data).hexdigest()))
    if not files:
        raise CorpusError("no passage in any of its files", file=str(paths[0]))
    if reading.columns == "ignore":
        left_out.unused.clear()
    named = tuple(map(str, paths)) if gathered.found else ()
    notes, unused = tuple(left_out.sentences()), tuple(sorted(left_out.unused))
    return Corpus(unique_ids(passages), tuple(files), notes, unused, named)


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


def kind_of(path: Path) -> str | None:
    """The format that a file's name tells, whatever it is packed by; None where it tells none."""
    packed = path.suffix.lower() in PACKED
    return SUFFIXES.get((path.with_suffix("") if packed else path).suffix.lower())


def _read_passages(path: Path, data: bytes, asked: Asked) -> Iterator[Passage]:
    file, chosen = str(path), asked.reading.format
    kind = (kind_of(path) or "text") if chosen == "auto" else chosen
    data = unpacked(path, data)
    refuse_other(file, data, kind, asked=chosen != "auto")
    if kind in ("text", "markdown"):
        yield from _text_passages(file, data, fences=kind == "markdown")
        return
    for line, record in _records(file, data, kind, asked.left_out):
        yield from record_passages(Place(file, line), record, asked)


def _records(file: str, data: bytes, kind: str, left_out: LeftOut) -> Iterator[tuple[int, Record]]:
    if kind == "parquet":
        return parquet_records(file, data)
    if kind in ("json", "jsonl"):
        return json_records(file, data)
    usual = "\t" if kind == "tsv" else ","
    delimiter = delimiter_of(data, usual)
    if delimiter != usual:
        said = DELIMITERS.get(delimiter, repr(delimiter))
        left_out.say(f"{file}: its columns are parted by {said}, as its header is.")
    return csv_records(file, data, delimiter)


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
