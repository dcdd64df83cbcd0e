"""The folder that an apply works in, and how it takes the place of the result.

Three names may lie beside `adapter`. `.adapter.lock` is there while a run works. `.adapter.partial` has a folder for
each unfinished job: its last checkpoint, from which a run of the same job continues, and the folder that will be
`adapter`. `.adapter.old` is there for the moment in which folders change places. A run that proves nothing leaves a
proven `adapter` alone: its own folder goes to `adapter.unproven`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorasize.artifacts.adapter_folder import NAMES, RECORD
from lorasize.artifacts.files import flush
from lorasize.errors import ModelError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_UNFINISHED = 4  # jobs besides the present one whose checkpoints are kept; not tuned
_STATE = "state.safetensors"


@dataclass
class Workspace:
    """Where one run puts things: its checkpoint, the folder that will be the result, and where that will be."""

    checkpoint: Path
    folder: Path
    place: Path

    def step_aside(self) -> None:
        """Leave the folder that is in place, and put the result beside it."""
        self.place = _aside(self.place)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep others from working on `what` while the block runs. The lock is the file at `path`; a kill releases it.

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


def _aside(place: Path) -> Path:
    return place.with_name(f"{place.name}.unproven")


def require_ours(out: Path) -> Path:
    """The place that `out` means, links resolved: empty, or a folder of lorasize with nothing else in it.

    Raises:
        ModelError: there is something that lorasize did not write, or a mount point, which cannot be replaced.
    """
    place = Path(os.path.realpath(out))
    if not place.exists():
        return place
    if os.path.ismount(place):
        raise ModelError(f"{out} is a mount point, which cannot be replaced: name a folder in it")
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else None
    if names is None or (names and not (place / RECORD).is_file()):
        raise ModelError(f"{out} exists and was not written by lorasize: choose another output folder")
    if foreign := [name for name in names if name not in NAMES]:
        raise ModelError(
            f"{out} holds {foreign[0]}, which lorasize did not write: move it away or choose another output folder"
        )
    return place


@contextmanager
def staged(out: Path, job: str) -> Iterator[Workspace]:
    """A workspace whose folder takes the place of `out` when the block ends without an error.

    After an error or a kill the workspace stays for the same `job`, if it holds a checkpoint.

    Raises:
        ModelError: `out` is not ours to replace, another run is at work on it, or the disk is full or read-only.
    """
    place = require_ours(out)
    require_ours(_aside(place))
    with locked(_beside(place, "lock"), str(out)):
        _settle(place)
        _settle(_aside(place))
        try:
            workspace = _begun(place, job)
            try:
                yield workspace
                _put(workspace.folder, workspace.place)
            finally:
                if not workspace.checkpoint.exists():
                    shutil.rmtree(workspace.folder.parent, ignore_errors=True)
                with suppress(OSError):  # others are in it
                    _beside(place, "partial").rmdir()
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
    """The workspace that this job left, or a new one. Those of other jobs stay if they hold a checkpoint."""
    partial = _beside(place, "partial")
    own = partial / hashlib.sha256(job.encode()).hexdigest()[:16]
    others = [path for path in partial.iterdir() if path != own] if partial.is_dir() else []
    kept = sorted((path for path in others if (path / _STATE).is_file()), key=lambda path: -path.stat().st_mtime)
    for path in others:
        if path not in kept[:_UNFINISHED]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (own / "folder").is_dir():
        shutil.rmtree(own, ignore_errors=True)
        (own / "folder").mkdir(parents=True)
    return Workspace(own / _STATE, own / "folder", place)


def _put(folder: Path, place: Path) -> None:
    """Let the folder take its place. A kill leaves the old one or the new one; `_settle` removes what else it leaves.

    The folder and its files are on the disk before the old folder and the checkpoint are removed.
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
