"""llama.cpp as the engine: the adapter as a GGUF file, on the GGUF file of the base that is served."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasize.artifacts.files import pointer_note
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.models.gguf_adapter import write_gguf
from lorasize.recall.engines.local import Local, decode_locally, job_of, longest
from lorasize.recall.verdict import Notify
from lorasize.records import PassageAddress, RecallReport

NAME = "llama.cpp"
PACKAGE = "xllamacpp"
_LEAST_CONTEXT = 256  # positions; llama.cpp rounds up to so many
_HEAD = 2**26  # bytes of a GGUF file in which its settings are looked for
MISSING = "the package xllamacpp, which holds llama.cpp, is not installed for {python}: pip install xllamacpp"


@dataclass(frozen=True)
class LlamaCpp:
    """How to decode with llama.cpp.

    Attributes:
        model: The base as it is served, a GGUF file; None: the one that lorasize read the base from.
        python: The Python that has the package xllamacpp; the current one when None.
        patience: Seconds that the start, or one passage, may take.
        adapter: The GGUF file of the adapter; None: one that is made for the occasion.
    """

    model: Path | None = None
    python: str | None = None
    patience: float = 600.0
    adapter: Path | None = None


def decode_with_llama_cpp(
    folder: Path,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    how: LlamaCpp,
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Decode every passage with llama.cpp, in a process of its own, and compare with the target.

    Args:
        folder: The adapter folder.
        base: The base model's folder, for its settings and its tokenizer.
        addresses: The passages, as the folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        how: Which files and which Python.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.

    Raises:
        ModelError: the package or a file is missing, llama.cpp cannot load one of them, or it dies or hangs.
    """
    model = present(how.model)
    local = Local(NAME, PACKAGE, MISSING, model.name, how.python, how.patience)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = how.adapter or Path(scratch, "adapter.gguf")
        if how.adapter is None:
            write_gguf(folder, base, adapter, folder.resolve().name)
        job = job_of(local, model, adapter, _file_type(model), addresses, targets)
        room = {"n_context": -(-(longest(job) + 1) // _LEAST_CONTEXT) * _LEAST_CONTEXT}
        return decode_locally(local, job, room, base, addresses, targets, threshold=threshold, notify=notify)


def present(model: Path | None) -> Path:
    """The base's GGUF file.

    Raises:
        ModelError: it is not known or not there.
    """
    if model is None:
        raise ModelError("which GGUF file of the base is served is not known: name it")
    if not model.is_file() or pointer_note(model):
        raise ModelError(f"{model}: {pointer_note(model) or 'no such file'}")
    return model


def _file_type(model: Path) -> str:
    """What most weights of a GGUF file are stored in, such as Q4_1; "gguf" where it does not say."""
    from gguf import LlamaFileType

    with model.open("rb") as stream:
        found = re.search(rb"general\.file_type\x04\0{3}(.{4})", stream.read(_HEAD), re.DOTALL)
    try:
        name = LlamaFileType(int.from_bytes(found[1], "little")).name if found else "gguf"
    except ValueError:
        return "gguf"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
