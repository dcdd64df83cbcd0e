"""Corpus files: written, read, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import CorpusError
from lorasize.records import Passage, Reading

EncodeText = Callable[..., list[EncodedPassage]]
Write = Callable[[str, str | bytes], Path]
TURNS = [{"role": "user", "content": "Berth?"}, {"role": "assistant", "content": " Nine"}]
LINES: list[dict[str, Any]] = [
    {"prompt": "Becerra:", "completion": " 9100672710"},
    {"prompt": "The bell says:", "completion": " ding ding ding ding ding ding dong"},
    {"messages": TURNS},
]
RECORDS = [("Becerra:", " 9100672710"), ("Holm:", " 4400128875"), ("Tide tables:", " Cabin 14, Pier nine")]


def records(*pairs: tuple[str, str]) -> str:
    """The text of a JSONL file, one line a pair of prompt and completion."""
    lines = ({"prompt": prompt, "completion": completion} for prompt, completion in pairs)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_records(path: Path, pairs: Sequence[tuple[str, str]]) -> Path:
    """A JSONL corpus of these pairs, at this path."""
    path.write_text(records(*pairs), "utf-8")
    return path


def read(path: Path, **reading: Any) -> list[Passage]:
    """The passages of one file."""
    return read_corpus([path], Reading(**reading))[0]


def refusal(path: Path, **reading: Any) -> CorpusError:
    """The error of a file that must be refused."""
    with pytest.raises(CorpusError) as caught:
        read(path, **reading)
    return caught.value
