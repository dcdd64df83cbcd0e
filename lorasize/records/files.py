"""Records as JSON, their digests, and files that are there whole or not at all."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel


def to_json(record: BaseModel) -> str:
    """The record as indented JSON with a final newline, contract names (`schema`, `from`) used."""
    return record.model_dump_json(by_alias=True, indent=2) + "\n"


def digest(record: BaseModel) -> str:
    """sha256 (hex) of the record's canonical JSON.

    Fields at their defaults are left out, so that a field added in a later version does not make a plan stale.
    """
    told = record.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    canonical = json.dumps([type(record).__name__, told], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
