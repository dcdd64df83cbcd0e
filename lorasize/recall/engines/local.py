"""An engine that is started for the occasion, in a process of its own and in whichever Python has it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.completion import N_PROBS, decoded_of
from lorasize.recall.engines.process import EngineProcess, started
from lorasize.recall.verdict import Notify, compare
from lorasize.records import Decoded, DecodeJob, Engine, PassageAddress, RecallReport

SCRIPT = Path(__file__).with_name("engine_process.py")
_MOST = 300  # characters of what an engine says


@dataclass(frozen=True)
class Local:
    """What is run.

    Attributes:
        name: The engine's, by which `SCRIPT` knows it.
        package: What holds it; named with the version.
        missing: What is said where it cannot be imported, with places for `python` and `why`.
        model: What it serves, as the report shall call it; None: the base's own folder.
        python: The Python that has it; the current one when None.
        patience: Seconds that the start, or one passage, may take.
    """

    name: str
    package: str
    missing: str
    model: str | None
    python: str | None
    patience: float


def decode_locally(
    local: Local,
    job: DecodeJob,
    more: Mapping[str, Any],
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    *,
    threshold: float,
    notify: Notify,
    by_settings: bool = False,
) -> RecallReport:
    """Decode every passage of a job with an engine in a process of its own, and compare with the target.

    Args:
        local: The engine.
        job: What it decodes.
        more: What it is told besides.
        base: The base model's folder, for its tokenizer.
        addresses: The passages, as the adapter folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.
        by_settings: Whether the engine, as it is served, reads the base's settings for decoding.

    Raises:
        ModelError: the engine is missing, cannot load base or adapter, dies or hangs.
    """
    told = {
        "model": job.base, "adapter": job.adapter, "prompts": job.prompts, "n_tokens": job.n_tokens,
        "n_probs": N_PROBS, **more,
    }  # fmt: skip
    python = local.python or sys.executable
    with started([python, str(SCRIPT), local.name], told, local.name, local.patience) as process:
        begun = _begun(process, local, python)
        decoded = _decoded(process, job, addresses, models.load_tokenizer(base).eos_token_id)
        report = compare(
            job, base, addresses, targets, decoded, threshold=threshold, notify=notify, by_settings=by_settings
        )
    version = f"{local.package} {begun['version']:.100}"
    where = {name: f"{begun[name]:.100}" for name in ("device", "dtype") if isinstance(begun.get(name), str)}
    return report.model_copy(update={"engine": Engine(name=local.name, version=version, model=local.model), **where})


def longest(job: DecodeJob) -> int:
    """Positions of the longest prompt with what comes after it."""
    return max(len(prompt) + n for prompt, n in zip(job.prompts, job.n_tokens, strict=True))


def job_of(
    local: Local,
    base: Path,
    adapter: Path,
    dtype: str,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
) -> DecodeJob:
    """What an engine decodes: these passages, by the base and the adapter in the forms that it loads."""
    return DecodeJob(
        base=str(base.resolve()),
        adapter=str(adapter.resolve()),
        device="cpu",
        dtype=dtype,
        prompts=tuple(one.prompt_ids for one in addresses),
        targets=tuple(one.target_ids for one in targets) if targets is not None else (),
        n_tokens=tuple(one.n_tokens for one in addresses),
        attn_implementation=local.name,
    )


def _begun(process: EngineProcess, local: Local, python: str) -> dict[str, Any]:
    """What the process says of itself once it has loaded base and adapter."""
    told = process.answer("the start")
    if isinstance(told, dict) and "missing" in told:
        raise ModelError(local.missing.format(python=python, why=_line(told["missing"])))
    if isinstance(told, dict) and "refused" in told:
        raise ModelError(f"{local.name}: refused, at the start ({_line(told['refused'])})")
    if not isinstance(told, dict) or not isinstance(told.get("version"), str):
        raise ModelError(f"{local.name}: its answer at the start is damaged ({told!r:.100})")
    return told


def _line(said: object) -> str:
    return " ".join(str(said).split())[:_MOST]


def _decoded(
    process: EngineProcess, job: DecodeJob, addresses: Sequence[PassageAddress], stop: int | None
) -> Iterator[Decoded]:
    for row, address in enumerate(addresses):
        answer = process.answer(f"passage {row + 1} of {len(addresses)} ({address.id:.100})")
        yield decoded_of(answer, job.targets[row] if job.targets else (), address.n_tokens, stop, process.name)
