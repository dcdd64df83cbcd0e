"""Files that are there whole or not at all, digests of what is in them, and records read from JSON within bounds."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from lorasize.errors import LorasizeError


def text_digest(text: str) -> str:
    """sha256 (hex) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


MAX_BYTES = 50_000_000


Record = TypeVar("Record", bound=BaseModel)


def cache_folder() -> Path:
    """The user's own folder: `$LORASIZE_CACHE`, else `$XDG_CACHE_HOME/lorasize`, else `~/.cache/lorasize`."""
    if explicit := os.environ.get("LORASIZE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorasize"


def read_record(path: Path, kind: type[Record], name: str, error: Callable[[str], LorasizeError]) -> Record:
    """The record in a JSON file of the schema `name`/1.

    Raises:
        LorasizeError: `error`'s kind: missing, over 50 MB, not JSON, of another schema, or with values that are none.
    """
    try:
        text = _text(path)
        _check_schema(json.loads(text, parse_constant=_no_constant), name)
        return kind.model_validate_json(text)
    except ValidationError as problem:
        raise error(f"{path}: not a valid {name}: {_first(problem)}") from None
    except json.JSONDecodeError as problem:
        raise error(f"{path}: not JSON (line {problem.lineno}: {problem.msg})") from None
    except RecursionError:
        raise error(f"{path}: not a {name}: nested too deeply") from None
    except (OSError, ValueError) as problem:  # a UnicodeDecodeError is a ValueError
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else problem
        raise error(f"{path}: {reason}") from None


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 10**6} MB")
    return data.decode("utf-8")


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}, which is no number")


def _check_schema(data: Any, name: str) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith(f"{name}/"):
        raise ValueError(f"not a {name}: its schema is {schema!r:.80}")
    if schema != f"{name}/1":
        advice = "update lorasize or make the file anew"
        raise ValueError(f"schema {schema!r:.80}, while this version reads {name}/1: {advice}")


def _first(problem: ValidationError) -> str:
    errors = problem.errors(include_url=False, include_input=False, include_context=False)
    place = ".".join(str(part) for part in errors[0]["loc"]) or "top level"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{' '.join(place.split()):.200}: {errors[0]['msg']}{more}"


def write_text(text: str, path: Path) -> None:
    """Put a text at `path` whole or not at all, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(text.encode(), path)


def write_whole(data: bytes, path: Path) -> None:
    """Write beside the target, flush to the disk, then rename: after a kill or a power cut the old file or this one.

    A link stays one, to a new file.

    Raises:
        OSError: the disk is full, the folder cannot be written, or what is there is no file (a device, a folder); it is
            still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    _sweep(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
        flush(path.parent)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise  # only of a write does Python not say to which file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Take away what processes left that were killed while they wrote this file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _running(int(pid)):
            left.unlink(missing_ok=True)


def _running(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, last. Windows cannot open a folder, and needs no such thing."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
