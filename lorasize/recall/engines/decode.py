"""One call for whichever engine decodes in place of transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lorasize import models
from lorasize.artifacts.files import reason
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines import llama_cpp, vllm
from lorasize.recall.engines.llama_cpp import LlamaCpp, decode_with_llama_cpp, present
from lorasize.recall.engines.merged import Merged, decode_merged
from lorasize.recall.engines.server import Server, decode_on_server
from lorasize.recall.engines.vllm import Vllm, decode_with_vllm
from lorasize.recall.verdict import Notify
from lorasize.records import PassageAddress, RecallReport

LocalEngine = LlamaCpp | Vllm  # engines that are started for the occasion
Other = LocalEngine | Merged | Server  # what decodes in place of transformers with base and adapter

_PATIENCE = 60.0  # seconds that a Python may take to say whether it has a package
_HAS = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


def decode_by(
    engine: Other,
    folder: Path,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    *,
    ref: str,
    dtype: str,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Decode every passage by an engine, and compare with the target.

    Args:
        engine: Which, and how. What it is not told is as the adapter was made: `ref` and `dtype`.
        folder: The adapter folder.
        base: The base model's folder.
        addresses: The passages, as the adapter folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        ref: What the base was read from: where that is a GGUF file, llama.cpp serves it.
        dtype: Of the base.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.

    Raises:
        ModelError: the engine or a file is missing, is refused, dies or hangs.
    """
    if isinstance(engine, Server):
        return decode_on_server(base, addresses, targets, engine, threshold=threshold, notify=notify)
    if isinstance(engine, LlamaCpp):
        known = _with_base(engine, ref)
        return decode_with_llama_cpp(folder, base, addresses, targets, known, threshold=threshold, notify=notify)
    engine = replace(engine, dtype=dtype) if engine.dtype == "auto" else engine
    if isinstance(engine, Merged):
        return decode_merged(addresses, targets, engine, threshold=threshold, notify=notify)
    return decode_with_vllm(folder, base, addresses, targets, engine, threshold=threshold, notify=notify)


def require(engine: LocalEngine, ref: str) -> None:
    """Refuse an engine that is not there, before anything that takes long.

    Raises:
        ModelError: its Python, its package or the GGUF file of the base is missing.
    """
    if isinstance(engine, LlamaCpp):
        present(_with_base(engine, ref).model)
    package, missing = (
        (llama_cpp.PACKAGE, llama_cpp.MISSING) if isinstance(engine, LlamaCpp) else (vllm.PACKAGE, vllm.MISSING)
    )
    python = engine.python or sys.executable
    try:
        found = subprocess.run(
            [python, "-c", _HAS, package], capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
        raise ModelError(f"{python}: cannot be started ({why})") from None
    if found.returncode:
        raise ModelError(missing.format(python=python, why=f"it has no package {package}"))


def name_of(engine: LocalEngine) -> str:
    """What messages call it."""
    return llama_cpp.NAME if isinstance(engine, LlamaCpp) else vllm.NAME


def _with_base(engine: LlamaCpp, ref: str) -> LlamaCpp:
    return engine if engine.model is not None else replace(engine, model=models.gguf_of(ref))
