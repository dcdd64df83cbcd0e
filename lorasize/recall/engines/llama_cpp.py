"""llama.cpp as the engine: the adapter as a GGUF file, on the GGUF file of the base that is served."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasize import models
from lorasize.artifacts.files import pointer_note
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.models.gguf_adapter import write_gguf
from lorasize.recall.engines.completion import N_PROBS, decoded_of
from lorasize.recall.engines.process import EngineProcess, started
from lorasize.recall.verdict import Notify, compare
from lorasize.records import Decoded, DecodeJob, Engine, PassageAddress, RecallReport

NAME = "llama.cpp"
PACKAGE = "xllamacpp"
_SCRIPT = Path(__file__).with_name("llama_cpp_process.py")
_LEAST_CONTEXT = 256  # positions; llama.cpp rounds up to so many
_HEAD = 2**26  # bytes of a GGUF file in which its settings are looked for
_MISSING = "the package {package}, which holds llama.cpp, is not installed for {python}: pip install {package}"


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
    model = _present(how.model)
    with tempfile.TemporaryDirectory() as scratch:
        adapter = how.adapter or Path(scratch, "adapter.gguf")
        if how.adapter is None:
            write_gguf(folder, base, adapter, folder.resolve().name)
        job = _job(adapter, model, addresses, targets)
        python = how.python or sys.executable
        with started([python, str(_SCRIPT)], _told(job), NAME, how.patience) as process:
            engine = _begun(process, python, model)
            decoded = _decoded(process, job, addresses, models.load_tokenizer(base).eos_token_id)
            report = compare(
                job, base, addresses, targets, decoded, threshold=threshold, notify=notify, by_settings=False
            )
    return report.model_copy(update={"engine": engine})


def _present(model: Path | None) -> Path:
    if model is None:
        raise ModelError("which GGUF file of the base is served is not known: name it")
    if not model.is_file() or pointer_note(model):
        raise ModelError(f"{model}: {pointer_note(model) or 'no such file'}")
    return model


def _job(
    adapter: Path, model: Path, addresses: Sequence[PassageAddress], targets: Sequence[EncodedPassage] | None
) -> DecodeJob:
    return DecodeJob(
        base=str(model.resolve()),
        adapter=str(adapter.resolve()),
        device="cpu",
        dtype=_file_type(model),
        prompts=tuple(one.prompt_ids for one in addresses),
        targets=tuple(one.target_ids for one in targets) if targets is not None else (),
        n_tokens=tuple(one.n_tokens for one in addresses),
        attn_implementation=NAME,
    )


def _told(job: DecodeJob) -> dict[str, object]:
    """What the process is told."""
    longest = max(len(prompt) + n for prompt, n in zip(job.prompts, job.n_tokens, strict=True))
    return {
        "model": job.base, "adapter": job.adapter, "prompts": job.prompts, "n_tokens": job.n_tokens,
        "n_probs": N_PROBS, "n_context": -(-(longest + 1) // _LEAST_CONTEXT) * _LEAST_CONTEXT,
    }  # fmt: skip


def _begun(process: EngineProcess, python: str, model: Path) -> Engine:
    """What runs in the process, once it has loaded base and adapter."""
    told = process.answer("the start")
    if isinstance(told, dict) and "missing" in told:
        raise ModelError(_MISSING.format(package=PACKAGE, python=python))
    if not isinstance(told, dict) or not isinstance(told.get("version"), str):
        raise ModelError(f"{NAME}: its answer at the start is damaged ({told!r:.100})")
    return Engine(name=NAME, version=f"{PACKAGE} {told['version']:.100}", model=model.name)


def _decoded(
    process: EngineProcess, job: DecodeJob, addresses: Sequence[PassageAddress], stop: int | None
) -> Iterator[Decoded]:
    for row, address in enumerate(addresses):
        answer = process.answer(f"passage {row + 1} of {len(addresses)} ({address.id:.100})")
        yield decoded_of(answer, job.targets[row] if job.targets else (), address.n_tokens, stop, NAME)


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
