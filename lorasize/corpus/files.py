"""A corpus file's bytes and its text, and what is said where they cannot be had."""

from __future__ import annotations

import codecs
import contextlib
import difflib
import gzip
import hashlib
import importlib
import io
import re
import zlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

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
        raise CorpusError("this is a folder, not a file", file=str(path))
    if path.is_file():
        raise CorpusError(f"larger than {MAX_BYTES // 10**9} GB, so it is not read; split it", file=str(path))
    raise CorpusError("not a regular file, so it is not read; write what it holds to one", file=str(path))


def as_planned(data: bytes, sha256: str) -> bytes:
    """The bytes with the line ends that they had when this digest was taken, where those alone changed; else as is."""
    unix = data.replace(b"\r\n", b"\n")
    for other in (unix, unix.replace(b"\n", b"\r\n")):
        if other != data and hashlib.sha256(other).hexdigest() == sha256:
            return other
    return data


PACKED = (".gz", ".zst")  # suffixes of files that are unpacked first


def unpacked(path: Path, data: bytes) -> bytes:
    """The bytes within a file that its suffix says is packed; of any other, the bytes as they are.

    Raises:
        CorpusError: it is damaged, holds more than a gigabyte, or what reads Zstandard is not installed.
    """
    suffix = path.suffix.lower()
    if suffix not in PACKED:
        return data
    kind = "gzip" if suffix == ".gz" else "Zstandard"
    try:
        with contextlib.closing(_unpacking(suffix, data)) as stream:
            inside: bytes = stream.read(MAX_BYTES + 1)
    except ImportError:
        raise CorpusError("reading .zst needs pyarrow: pip install 'lorasize[parquet]'", file=str(path)) from None
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's errors are OSErrors or ValueErrors
        why = " ".join(str(error).split())
        raise CorpusError(f"not whole {kind}: {why:.200}; fetch or pack it again", file=str(path)) from None
    if len(inside) > MAX_BYTES:
        raise CorpusError(f"holds more than {MAX_BYTES // 10**9} GB, so it is not read; split it", file=str(path))
    return inside


def _unpacking(suffix: str, data: bytes) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=io.BytesIO(data))
    pyarrow: Any = importlib.import_module("pyarrow")
    return pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd")


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
