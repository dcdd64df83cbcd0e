"""Files that are there whole or not at all, digests of what is in them, and reading within bounds."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from pathlib import Path

MAX_BYTES = 50_000_000  # of a file of ours that is read: a hundred times the largest seen
_POINTER = "a Git LFS pointer, not the file it stands for: run `git lfs pull`"


def cache_folder() -> Path:
    """The user's own folder: `$LORASIZE_CACHE`, else `$XDG_CACHE_HOME/lorasize`, else `~/.cache/lorasize`."""
    if explicit := os.environ.get("LORASIZE_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorasize"


def is_lfs_pointer(head: bytes) -> bool:
    """Whether a file that begins so is what Git LFS leaves in place of one that was not fetched."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def pointer_note(path: Path) -> str:
    """What is said of a file that is there by a Git LFS pointer alone; "" of any other."""
    try:
        with path.open("rb") as stream:
            pointer = path.is_file() and is_lfs_pointer(stream.read(64))
    except OSError:
        return ""
    return _POINTER if pointer else ""


def text_digest(text: str) -> str:
    """sha256 (hex) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes (`MAX_BYTES` when None).

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file (to open a pipe is to wait), or larger.
    """
    limit = MAX_BYTES if limit is None else limit
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        large = f"{limit // 10**9} GB" if limit >= 10**9 else f"{limit // 10**6} MB"
        raise ValueError(f"larger than {large}")
    return data


def read_text(path: Path, limit: int | None = None) -> str:
    """The text of a regular file of at most `limit` bytes (`MAX_BYTES` when None), decoded strictly as UTF-8.

    Raises:
        OSError: it cannot be read.
        ValueError: as `read_bytes`, or it is a Git LFS pointer, or not UTF-8.
    """
    data = read_bytes(path, limit)
    if is_lfs_pointer(data):
        raise ValueError(_POINTER)
    return data.decode("utf-8")


def reason(problem: OSError | ValueError) -> str:
    """What `read_bytes` and `read_text` refuse a file for, in words."""
    return problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)


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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
