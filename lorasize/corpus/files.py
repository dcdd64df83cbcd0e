"""A corpus file's bytes and its text, and what is said where they cannot be had."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from lorasize.errors import CorpusError

MAX_BYTES = 10**9  # of one file
REFUSED = re.compile(r"[\x00\ud800-\udfff]")


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file of at most a gigabyte.

    Raises:
        CorpusError: it is none, or cannot be read.
    """
    if REFUSED.search(str(path)):
        raise CorpusError("its name is not UTF-8, so that no plan could name it; rename it", file=ascii(str(path)))
    try:
        if path.stat().st_size <= MAX_BYTES and path.is_file():
            return path.read_bytes()
    except FileNotFoundError:
        beside = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        meant = near([path.name], beside, str(path).removesuffix(path.name))
        raise CorpusError("there is no such file" + meant, file=str(path)) from None
    except OSError as error:
        raise CorpusError(f"cannot be read: {error.strerror or error}", file=str(path)) from error
    if path.is_dir():
        raise CorpusError("this is a folder; name the files in it", file=str(path))
    why = f"larger than {MAX_BYTES // 10**9} GB" if path.is_file() else "not a regular file"
    raise CorpusError(f"{why}, so it is not read", file=str(path))


def near(names: Iterable[str], known: Collection[str], folder: str = "") -> str:
    """A question that offers the known names nearest to these; empty where none is near."""
    near = [found for name in names for found in difflib.get_close_matches(name, list(known), n=1)]
    return f"; did you mean {folder}{' and '.join(near)}?" if near else ""


def decode(file: str, data: bytes) -> tuple[str, int]:
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
        raise CorpusError(refusal("\x00"), file=file, line=text.count("\n", 0, text.index("\x00")) + 1)
    return text, skip


def refusal(character: str) -> str:
    """Why this character of `REFUSED` is not taken."""
    name = "NUL" if character == "\x00" else "a lone surrogate"
    return f"{name} (U+{ord(character):04X}) has no place in text; remove it"


def read_text(path: Path) -> str:
    """The text of a file, newlines as they are, without a byte order mark.

    Raises:
        CorpusError: it is no regular file of at most a gigabyte, or not UTF-8.
    """
    return decode(str(path), read_bytes(path))[0]
