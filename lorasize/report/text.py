"""Text made safe and short for whoever reads it: a terminal, a build log, a file.

Whatever comes from a corpus, a model or a file name passes `clean` on its way: escape sequences, control characters and
bidirectional overrides are dropped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from typing import IO

_SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x9b[0-?]*[ -/]*[@-~]")
_BLANK = re.compile(r"[\t\n\r\v\f\x85\u2028\u2029]")
_UNSAFE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_COMMAND = re.compile(r"^(\s*):(?=:)", re.MULTILINE)
_PLAIN = str.maketrans({"·": "-", "–": "-", "≥": ">=", "→": "->", "±": "+-", "…": "...", "½": "1/2", "²": "2"})


def clean(text: str) -> str:
    """The text on one line, without escape sequences and control characters."""
    return _UNSAFE.sub("", _BLANK.sub(" ", _SEQUENCES.sub("", text)))


def clean_lines(text: str) -> str:
    """The same with line breaks kept and tabs as four spaces."""
    unified = _SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ")
    return _UNSAFE.sub("", unified)


def quote(token: str) -> str:
    r"""A token to read: in quotes, a line break as \n."""
    return clean(json.dumps(token, ensure_ascii=False))


def count(n: int, noun: str) -> str:
    """A count and its noun: "1 passage", "1,024 passages"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def layers(numbers: Sequence[int]) -> str:
    """Layer numbers with runs of three and more shortened: "layer 20", "layers 2, 14–24"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"layer{'s' * (len(numbers) != 1)} {', '.join(parts)}"


def format_probability(p: float | None) -> str:
    """A token's probability to read, rounded down: 0.49999 must not look like ½. "–" where none was measured."""
    if p is None:
        return "–"
    if p > 1:  # of a file that was damaged
        return f"{p:.2g}"
    return f"{math.floor(p * 1e4) / 1e4:.4f}" if p >= 0.0001 or p == 0 else f"{p:.1e}"


def format_chance(p: float) -> str:
    """A success probability, never rounded to certainty."""
    return ">0.99" if p > 0.995 else "<0.01" if p < 0.005 else f"{p:.2f}"


def exact(value: float) -> str:
    """A number with all its digits before the point: a limit and what is just over it must not look alike."""
    return f"{value:,.1f}".removesuffix(".0") if abs(value) >= 1000 else f"{value:.6g}"


def encodable(text: str, stream: IO[str] | None) -> str:
    """The text with what the stream's encoding lacks replaced."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)
    return text


def guard(text: str) -> str:
    """The text with nothing in it that GitHub Actions would take for a command; as it is elsewhere."""
    if "GITHUB_ACTIONS" not in os.environ:
        return text
    return _COMMAND.sub(r"\1: ", text).replace("##[", "# #[")
