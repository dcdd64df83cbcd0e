"""vLLM as the engine: the PEFT folder as it is, on the base's folder, in a Python of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasize import models
from lorasize.artifacts.adapter_folder import CONFIG, read_settings
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.planning.serving import VLLM_RANKS, vllm_rank
from lorasize.recall.engines.local import Local, decode_locally, job_of, longest
from lorasize.recall.verdict import Notify
from lorasize.records import PassageAddress, RecallReport

NAME = "vLLM"
PACKAGE = "vllm"
MISSING = "vLLM cannot be imported by {python} ({why}): it needs an environment of its own"
_ACTIVATED = (
    "This vLLM took an adapter that acts after certain tokens alone, though it knows no such: the adapter acted on "
    "every token of each prompt, as it will in every request that names it."
)


@dataclass(frozen=True)
class Vllm:
    """How to decode with vLLM.

    Attributes:
        model: The base as it is served, a folder; None: the one that the adapter was proven on.
        python: The Python that has vLLM; the current one when None.
        patience: Seconds that the start, or one passage, may take.
        dtype: Of the base model and the adapter; auto is the one that the adapter was proven in.
    """

    model: Path | None = None
    python: str | None = None
    patience: float = 600.0
    dtype: str = "auto"


def decode_with_vllm(
    folder: Path,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    how: Vllm,
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Decode every passage with vLLM, in a process of its own, and compare with the target.

    Args:
        folder: The adapter folder.
        base: The base model's folder.
        addresses: The passages, as the folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        how: Which base, which dtype and which Python.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.

    Raises:
        ModelError: vLLM is missing, cannot load base or adapter, or dies or hangs.
    """
    settings = read_settings(folder / CONFIG)
    model = how.model or base
    if not model.is_dir():
        raise ModelError(f"{model}: no such folder")
    local = Local(NAME, PACKAGE, MISSING, None if how.model is None else model.name, how.python, how.patience)
    job = job_of(local, model, folder, how.dtype, addresses, targets)
    more = {
        "dtype": how.dtype,
        "max_lora_rank": _room(folder, settings.get("r")),
        "n_context": min(longest(job) + 1, models.max_positions(base)),
    }
    report = decode_locally(
        local, job, more, base, addresses, targets, threshold=threshold, notify=notify, by_settings=True
    )
    always = (_ACTIVATED,) if settings.get("alora_invocation_tokens") else ()
    return report.model_copy(update={"warnings": (*report.warnings, *always)})


def _room(folder: Path, rank: object) -> int:
    """The least max_lora_rank for an adapter of this rank."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"{folder / CONFIG}: damaged, r is {rank!r:.40}")
    if (room := vllm_rank(rank)) is None:
        raise ModelError(f"{folder}: rank {rank}: vLLM serves ranks up to {VLLM_RANKS[-1]}")
    return room
