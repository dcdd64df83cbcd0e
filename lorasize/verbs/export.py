"""The verb export: an adapter folder in; out comes the form that another engine loads, a file or a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from lorasize import models
from lorasize.artifacts.adapter_folder import changed_files, check_weights, read_addresses, read_record
from lorasize.artifacts.files import write_text
from lorasize.artifacts.modelfile import ADAPTER, MODELFILE, modelfile
from lorasize.errors import ModelError
from lorasize.models.fingerprint import check_base
from lorasize.models.gguf_adapter import is_gguf_adapter, write_gguf
from lorasize.models.merging import write_merged
from lorasize.recall.engines.llama_cpp import present
from lorasize.records import Memorization

Kind = Literal["gguf", "merged", "ollama"]
_ENDINGS: dict[Kind, str] = {"gguf": ".gguf", "merged": "-merged", "ollama": "-ollama"}


def export(
    folder: Path,
    out: Path | None = None,
    *,
    kind: Kind = "gguf",
    dtype: str = "auto",
    served: Path | None = None,
    ref: str | None = None,
    revision: str | None = None,
) -> Path:
    """The adapter as another engine loads it. Writing it proves nothing: `verify` with that engine does.

    Args:
        folder: The adapter folder.
        out: The file or folder; when None, one beside the adapter folder with its name and an ending.
        kind: gguf: the LoRA as a file for llama.cpp; merged: a model folder with the adapter in its weights; ollama: a
            folder with the LoRA and a Modelfile.
        dtype: Of the weights of a merged model; auto is the one that the adapter was proven in.
        served: The base's GGUF file that a Modelfile names; when None, the one that the base was read from.
        ref: Base model; the recorded one when None.
        revision: Of that model on the hub; the recorded one when neither is given.

    Raises:
        ModelError: a file of the folder is missing, damaged or not the one that was proven, the base is another one,
            the form has no place for the adapter, or something else is where it would be written.
        OSError: it cannot be written.
    """
    name = folder.resolve().name
    out = folder.resolve().with_name(f"{name}{_ENDINGS[kind]}") if out is None else out
    record = read_record(folder)
    check_weights(folder)
    if changed := changed_files(folder):
        raise ModelError(f"{folder / changed[0]}: its digest differs from that of the file that was proven")
    (_spare_file if kind == "gguf" else _spare_folder)(out)
    base = models.resolve(ref, revision) if ref else models.recorded_base(folder, record, revision)
    check_base(record.model_fingerprint, models.fingerprint(base), ref or record.plan.model.ref)
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "gguf":
        write_gguf(folder, base, out, name)
        return out
    with _whole(out) as part:
        if kind == "merged":
            write_merged(folder, base, part, record.recall.dtype if dtype == "auto" else dtype)
        else:
            _write_ollama(folder, base, part, _served(served, ref, record))
    return out


def _served(served: Path | None, ref: str | None, record: Memorization) -> Path:
    return present(served if served is not None else models.gguf_of(ref or record.plan.model.ref))


def _write_ollama(folder: Path, base: Path, out: Path, served: Path) -> None:
    longest = max(len(one.prompt_ids) + one.n_tokens for one in read_addresses(folder))
    write_gguf(folder, base, out / ADAPTER, folder.resolve().name)
    write_text(modelfile(served, longest, models.max_positions(base)), out / MODELFILE)


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """An empty folder that is `out` after the block, and nothing if that fails."""
    place = Path(os.path.realpath(out))
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        yield part
        if place.exists():
            shutil.rmtree(place)
        part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _spare_file(out: Path) -> None:
    """Refuse to write over anything but an adapter in the same form."""
    if not os.path.lexists(out):
        return
    if not out.is_file():
        raise ModelError(f"{out}: {'a folder' if out.is_dir() else 'no regular file'} is there")
    if out.stat().st_size and not is_gguf_adapter(out):
        raise ModelError(f"{out}: another file is there, no GGUF adapter: choose another name or remove it")


def _spare_folder(out: Path) -> None:
    """Refuse to write over anything but an empty folder, or one with an adapter and its Modelfile alone."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ModelError(f"{out}: no folder is there, but something else")
    if {path.name for path in out.iterdir()} - {ADAPTER, MODELFILE}:
        raise ModelError(f"{out}: a folder with files in it is there: choose another name or remove it")
