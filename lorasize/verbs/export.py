"""The verb export: an adapter folder in, one file out in the form that another engine loads."""

from __future__ import annotations

import os
from pathlib import Path

from lorasize import models
from lorasize.artifacts.adapter_folder import changed_files, check_weights, read_record
from lorasize.errors import ModelError
from lorasize.models.fingerprint import check_base
from lorasize.models.gguf_adapter import is_gguf_adapter, write_gguf


def export(folder: Path, out: Path | None = None, *, ref: str | None = None, revision: str | None = None) -> Path:
    """The GGUF file of the adapter, as llama.cpp loads it. Writing it proves nothing: `verify` with that engine does.

    Args:
        folder: The adapter folder.
        out: The file; when None, one beside the folder with its name and `.gguf`.
        ref: Base model; the recorded one when None.
        revision: Of that model on the hub; the recorded one when neither is given.

    Raises:
        ModelError: a file of the folder is missing, damaged or not the one that was proven, the base is another one,
            GGUF has no place for the adapter, or something else than an adapter is there.
        OSError: the file cannot be written.
    """
    out = folder.resolve().with_name(f"{folder.resolve().name}.gguf") if out is None else out
    record = read_record(folder)
    check_weights(folder)
    if changed := changed_files(folder):
        raise ModelError(f"{folder / changed[0]}: its digest differs from that of the file that was proven")
    _spare(out)
    base = models.resolve(ref, revision) if ref else models.recorded_base(folder, record, revision)
    check_base(record.model_fingerprint, models.fingerprint(base), ref or record.plan.model.ref)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(folder, base, out, folder.resolve().name)
    return out


def _spare(out: Path) -> None:
    """Refuse to write over anything but an adapter in the same form."""
    if not os.path.lexists(out):
        return
    if not out.is_file():
        raise ModelError(f"{out}: {'a folder' if out.is_dir() else 'no regular file'} is there")
    if out.stat().st_size and not is_gguf_adapter(out):
        raise ModelError(f"{out}: another file is there, no GGUF adapter: choose another name or remove it")
