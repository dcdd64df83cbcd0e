"""What a file is, whatever its name says: no pointer, page, document or table is memorised as if it were text."""

from __future__ import annotations

import csv
import json
import re

from lorasize.artifacts.files import is_lfs_pointer
from lorasize.corpus.shapes import is_header
from lorasize.corpus.tables import DELIMITERS
from lorasize.errors import CorpusError

AS_IT_STANDS = "or read it in the format text, which memorises it as it stands"
_RECORDS = "name it so, or give its format, to have its records read"
_MAGIC = {
    b"%PDF-": ("a PDF", "save its text"),
    b"PK\x03\x04": ("a zip archive, as Word and Excel write them", "save it as text or CSV"),
    b"\x1f\x8b": ("packed by gzip", "name it .gz"),
    b"\x28\xb5\x2f\xfd": ("packed by Zstandard", "name it .zst"),
    b"PAR1": ("Parquet", "name it .parquet"),
    b"ARROW1": ("Arrow", "save it as Parquet or JSONL"),
    b"SQLite format 3": ("an SQLite database", "save the table as CSV"),
    b"\x89PNG": ("a PNG picture", "name text"),
    b"\xff\xd8\xff": ("a JPEG picture", "name text"),
    b"GGUF": ("a GGUF model", "name the corpus"),
    b"\xff\xfe": ("UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16", "save it as UTF-8"),
}
_HTML = re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)?<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_HEAD = 4_000  # bytes in which an HTML page tells itself
_ROWS = 20  # lines of which a table tells itself


def refuse_other(file: str, data: bytes, kind: str, *, asked: bool) -> None:
    """Refuse a file that is not of its kind.

    Args:
        file: Its name, for the error.
        data: Its bytes.
        kind: What it is to be read as.
        asked: Whether the user named the kind; then text is text, whatever it looks like.

    Raises:
        CorpusError: saying what it is, and what to do.
    """
    is_text = kind in ("text", "markdown")
    if asked and is_text:
        return
    seen = _seen(data, kind) or (_table(data, kind) if is_text else "")
    if seen:
        more = f", {AS_IT_STANDS}" if is_text else ""
        raise CorpusError(f"this is {seen}{more}", file=file)


def _seen(data: bytes, kind: str) -> str:
    """What the bytes are for sure, and the way on; empty when they may be of this kind."""
    if is_lfs_pointer(data):
        return "a Git LFS pointer, not the file it stands for: run `git lfs pull`"
    for magic, (what, way) in _MAGIC.items():
        if data.startswith(magic) and not (kind == "parquet" and magic == b"PAR1"):
            return f"{what}, not {_NAMES[kind]}: {way}"
    if _HTML.match(data[:_HEAD]):
        return f"an HTML page, not {_NAMES[kind]}: save its text, or fetch the file itself where it is an error page"
    return ""


_NAMES = {"text": "text", "markdown": "Markdown", "json": "JSON", "jsonl": "JSONL", "csv": "CSV", "tsv": "TSV"}
_NAMES |= {"parquet": "Parquet"}


def _table(data: bytes, kind: str) -> str:
    """Whether a text is records in truth: JSON, lines of JSON, or rows under a header."""
    text = data.decode("utf-8-sig", "replace").strip()
    if text[:1] in ("{", "[") and _is_json(text):
        return f"JSON, not {_NAMES[kind]}: {_RECORDS}"
    lines = [line for line in text.split("\n", _ROWS)[:_ROWS] if line.strip()]
    return next((f"a table of columns parted by {said}, not {_NAMES[kind]}: {_RECORDS}"
                 for delimiter, said in DELIMITERS.items() if _is_table(lines, delimiter)), "")  # fmt: skip


def _is_json(text: str) -> bool:
    """Whether the text is a JSON object or a list of some, or every line of its beginning an object."""
    try:
        found = json.loads(text)
        return isinstance(found, dict) or isinstance(found, list) and any(isinstance(one, dict) for one in found)
    except (ValueError, RecursionError):
        pass
    try:
        lines = [json.loads(line) for line in text.split("\n", _ROWS)[:_ROWS] if line.strip()]
    except (ValueError, RecursionError):
        return False
    return all(isinstance(line, dict) for line in lines)


def _is_table(lines: list[str], delimiter: str) -> bool:
    """Whether lines are rows: a header of names that records have, or three columns alike as no prose has them."""
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error:
        return False
    if len(rows) < 2 or len({len(row) for row in rows}) > 1:
        return False
    if is_header(rows[0]):
        return True
    told = delimiter != "|" and len(rows) > 2 and len(rows[0]) > 2  # bars part the columns of Markdown's own tables
    return told and not any(cell[:1] == " " or not cell for row in rows for cell in row)
