"""The folder an apply works in beside the one it is for: locked, kept while it can be gone on with, then put in place.

Beside `adapter` lie `.adapter.lock` while a run is at work; `.adapter.partial`, with the name of the job, its last
checkpoint and the folder that will be `adapter`; and, for the moment in which folders change places, `.adapter.old`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorasize.errors import ModelError
from lorasize.records import flush

RECORD = "lorasize.json"  # in every adapter folder that lorasize wrote
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Workspace:
    """Where one run puts things: its checkpoint, and the folder that will be the result."""

    checkpoint: Path
    folder: Path


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep others from working on `what`; the lock file at `path` is there only meanwhile, and a kill releases it.

    Raises:
        ModelError: another run holds it, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, found = FileLock(path), path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ModelError(f"{what}: another run is at work on it; wait for its end, or choose another place") from None
    except OSError as error:
        raise ModelError(f"{what}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
        if not found:
            with suppress(OSError):  # not empty
                path.parent.rmdir()


@contextmanager
def staged(out: Path, job: str) -> Iterator[Workspace]:
    """A workspace whose folder takes the place of `out` when the block ends without an error.

    It is made before any work is done. After an error or a kill it stays for the same `job` if it holds a checkpoint.

    Raises:
        ModelError: `out` is not ours to replace, another run is at work on it, or the disk is full or read-only.
    """
    place = Path(os.path.abspath(out))  # a name even for "."
    if place.exists() and not (place / RECORD).is_file() and (not place.is_dir() or any(place.iterdir())):
        raise ModelError(f"{out} exists and was not written by lorasize: choose another output folder")
    with locked(_beside(place, "lock"), str(out)):
        _settle(place)
        try:
            workspace = _begun(place, job)
            try:
                yield workspace
                _put(workspace.folder, place)
            finally:
                if not workspace.checkpoint.exists():
                    shutil.rmtree(_beside(place, "partial"), ignore_errors=True)
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise ModelError(
                f"{error.filename or out}: cannot be written ({error.strerror}); what was there before is whole"
            ) from error


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{kind}")


def _settle(place: Path) -> None:
    """Undo or finish a change of folders that a kill cut short."""
    old = _beside(place, "old")
    if old.exists() and not place.exists():
        os.replace(old, place)
    shutil.rmtree(old, ignore_errors=True)


def _begun(place: Path, job: str) -> Workspace:
    """The workspace of this job as it was left, or a new one."""
    partial = _beside(place, "partial")
    note, folder = partial / "job", partial / "folder"
    if not folder.is_dir() or not note.is_file() or note.read_text(encoding="utf-8") != job:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        note.write_text(job, encoding="utf-8")
        folder.mkdir()
    return Workspace(partial / "state.safetensors", folder)


def _put(folder: Path, place: Path) -> None:
    """Let the folder take its place. A kill leaves the old one or the new one, and at worst a name for `_settle`.

    It is on the disk, its files too, before what it replaces and the checkpoint are taken away.
    """
    old = _beside(place, "old")
    for path in (*folder.iterdir(), folder):
        flush(path)
    if place.exists():
        os.replace(place, old)
    os.replace(folder, place)
    flush(place.parent)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(folder.parent, ignore_errors=True)
