"""GGUF files as safetensors folders in the user's cache, and quiet around transformers while it reads."""

from __future__ import annotations

import functools
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

from lorasize.artifacts.files import cache_folder
from lorasize.errors import ModelError

_CONVERSION = "1"  # bump when the conversion changes what it writes


def conversion_folder(digest: str) -> Path:
    """Where the conversion of the GGUF file with this sha256 lies, or will."""
    return cache_folder() / "models" / f"{digest[:16]}-{_CONVERSION}"


def converted(gguf: Path, digest: str) -> Path:
    """A safetensors copy of a GGUF file under the user's cache: loading it takes 0.4 s instead of 17 s and more.

    `digest` is the file's sha256.
    """
    done = conversion_folder(digest)
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


def _require_layers(gguf: Path) -> None:
    """Refuse a file that names more layers than it holds weights of: transformers would map them all, for minutes.

    Raises:
        ModelError: saying how many of both.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        named = next(int(one.contents()) for name, one in reader.fields.items() if name.endswith(".block_count"))
    except Exception:  # damaged in any way: transformers says so
        return
    held = {found[1] for one in reader.tensors if (found := re.match(r"blk\.(\d+)\.", one.name))}
    if named > len(held):
        raise ModelError(f"{gguf}: it names {named} layers and holds weights of {len(held)}: damaged, or one of a set")


def _convert(gguf: Path, folder: Path) -> None:
    _require_layers(gguf)
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
