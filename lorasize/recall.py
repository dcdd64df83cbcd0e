"""Recall: greedy decoding from the saved adapter, in a fresh process, against the target.

An adapter folder enters; a verdict per passage leaves. The fresh process loads the base and the adapter with stock
transformers and PEFT and shares nothing with training but the files.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorasize import models
from lorasize.adapter_folder import (
    PASSAGES,
    changed_files,
    check_base,
    check_weights,
    read_addresses,
    read_record,
    text_digest,
)
from lorasize.decoding import SETTINGS, generation_warnings
from lorasize.decoding import decode as _decode
from lorasize.errors import LorasizeError, ModelError
from lorasize.records import (
    Decoded,
    DecodeJob,
    PassageAddress,
    PassageRecall,
    RecallFailure,
    RecallReport,
)
from lorasize.tokens import EncodedPassage

_HIGHEST = 0.95  # p that training is taken to at most
_LEAST_SHIFT = 0.3  # log-odds by which a rise is worth a round of training

Notify = Callable[[int, int], None]


# ---------------------------------------------------------------- verify
def raised(report: RecallReport, threshold: float, trained_to: float) -> float | None:
    """The p to train every token to next, so that decoding's arithmetic cannot take it below the threshold.

    None where it is enough: the smallest p of the model as it is served, lowered by the largest |Δ ln p| seen in
    decoding, is still above the threshold. Else the log-odds asked for rise by what is missing; one step of that may
    not suffice, since the smallest p of another dtype is not that of training.

    Args:
        report: Of an adapter trained to `trained_to`.
        threshold: What p must exceed wherever it is decoded.
        trained_to: The p that training took every token above.
    """
    p, gap = report.min_probability, report.decoding_gap
    if p is None or gap is None or trained_to >= _HIGHEST:
        return None
    missing = math.inf if p <= 0 else math.log(threshold / p) + gap  # nats of ln p
    if missing < 0:
        return None
    shift = max(_LEAST_SHIFT, missing / max(1e-3, 1 - p))  # d ln p = (1 − p) · d log-odds
    return min(_HIGHEST, 1 / (1 + (1 / trained_to - 1) * math.exp(-shift)))


def verify(
    folder: Path,
    encoded: Sequence[EncodedPassage] | None = None,
    *,
    ref: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 1,
    merged: bool = False,
    attn_implementation: str = "sdpa",
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Whether the adapter on disk recalls its passages, decided in a fresh process.

    Args:
        folder: The adapter folder.
        encoded: The corpus, where it is at hand; without it the text is compared by its digest alone.
        ref: Base model; the recorded one when None.
        revision: Of that model on the hub; the recorded one when neither is given.
        device: Where to decode.
        dtype: Of the base model.
        batch_size: Prompts decoded together, padded on the left.
        merged: Whether the adapter is added to the base's weights, in their dtype, before.
        attn_implementation: eager, sdpa or flash_attention_2.
        notify: Told (passages done, passages).

    Raises:
        ModelError: a file is missing or damaged, the base is another one, or the corpus is not the adapter's.
    """
    record = read_record(folder)
    addresses = read_addresses(folder)
    check_weights(folder)
    changed = changed_files(folder)
    if len(addresses) != record.recall.n_passages:
        raise ModelError(f"{folder / PASSAGES}: {len(addresses)} passages, {record.recall.n_passages} were proven")
    base_ref = ref or record.plan.model.ref
    base = models.resolve(base_ref, revision or (record.plan.model.revision if ref is None else None))
    check_base(record.model_fingerprint, base, base_ref)
    targets = _matched(addresses, encoded) if encoded is not None else None
    report = decode_and_compare(
        folder, base, addresses, targets, device=device, dtype=dtype, batch_size=batch_size, merged=merged,
        attn_implementation=attn_implementation, threshold=record.threshold, notify=notify,
    )  # fmt: skip
    if record.recall.warnings is not None and report.warnings != record.recall.warnings:
        changed = (*changed, f"{SETTINGS} of the base")  # servers read it, though decoding here does not
    return report.model_copy(update={"changed_files": changed})


def _matched(addresses: Sequence[PassageAddress], encoded: Sequence[EncodedPassage]) -> list[EncodedPassage]:
    by_prompt = {passage.prompt_ids: passage for passage in encoded}
    for stored in addresses:
        passage = by_prompt.get(stored.prompt_ids)
        same = passage is not None and text_digest(passage.passage.target) == stored.target_sha256
        if passage is None or not same or passage.n_tokens != stored.n_tokens:
            place = f"{stored.file}:{stored.line}"
            raise ModelError(f"{place}: passage {stored.id} is not in this corpus as it was memorised")
    more = by_prompt.keys() - {stored.prompt_ids for stored in addresses}
    if more:
        text = next(p for p in encoded if p.prompt_ids in more).passage
        raise ModelError(f"{text.file}:{text.line}: passage {text.id} of this corpus was never memorised")
    return [by_prompt[stored.prompt_ids] for stored in addresses]


def decode_and_compare(
    folder: Path,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    *,
    device: str,
    dtype: str,
    threshold: float,
    notify: Notify,
    batch_size: int = 1,
    merged: bool = False,
    attn_implementation: str = "sdpa",
) -> RecallReport:
    """Decode every passage in a fresh process and compare ids and text with the target."""
    where = models.pick_device(device)
    kind = models.dtype_name(models.pick_dtype(dtype, where))
    job = DecodeJob(
        base=str(base),
        adapter=str(folder),
        device=str(where),
        dtype=kind,
        prompts=tuple(a.prompt_ids for a in addresses),
        targets=tuple(t.target_ids for t in targets) if targets is not None else (),
        n_tokens=tuple(a.n_tokens for a in addresses),
        attn_implementation=attn_implementation,
        batch_size=batch_size,
        merged=merged,
    )
    tokenizer = models.load_tokenizer(base)
    passages, failures, seen = [], [], []
    for index, decoded in enumerate(_decode_afresh(job)):
        target = targets[index] if targets is not None else None
        recalled, failure = _compare(tokenizer, addresses[index], target, decoded)
        passages.append(recalled)
        failures += [failure] if failure else []
        seen.append(decoded)
        notify(index + 1, len(addresses))
    report = _report(job, passages, failures, seen, threshold)
    wanted = job.targets or tuple(one.ids for one in seen)
    warnings = generation_warnings(base, wanted, tokenizer.eos_token_id)
    return report.model_copy(update={"warnings": warnings})


def _report(
    job: DecodeJob,
    passages: Sequence[PassageRecall],
    failures: Sequence[RecallFailure],
    seen: Sequence[Decoded],
    threshold: float,
) -> RecallReport:
    """The verdict. A smallest or largest of all passages is None where it is unknown of one of them."""
    measured = [p.min_probability for p in passages if p.min_probability is not None]
    lowest = min(measured) if len(measured) == len(passages) else None
    margins = [one.logit_margin for one in seen if one.logit_margin is not None]
    gaps = [one.decoding_gap for one in seen if one.decoding_gap is not None]
    return RecallReport(
        recalled=not failures,
        n_passages=len(passages),
        n_recalled=len(passages) - len(failures),
        threshold_met=lowest is not None and lowest > threshold,
        min_probability=lowest,
        min_logit_margin=min(margins) if lowest is not None and len(margins) == len(passages) else None,
        decoding_gap=max(gaps) if len(gaps) == len(passages) else None,
        failures=tuple(failures),
        passages=tuple(passages),
        dtype=job.dtype,
        device=job.device,
        attn_implementation=seen[-1].attn_implementation,
        batch_size=job.batch_size,
        merged=job.merged,
        fresh_process=True,
    )


def _compare(
    tokenizer: PreTrainedTokenizerBase, stored: PassageAddress, target: EncodedPassage | None, decoded: Decoded
) -> tuple[PassageRecall, RecallFailure | None]:
    text = target_text(tokenizer, stored.prompt_ids, decoded.ids)
    stopped = bool(decoded.ids) and decoded.ids[-1] == tokenizer.eos_token_id
    same_ids = target is None or decoded.ids == target.target_ids
    good = same_ids and stopped and text_digest(text) == stored.target_sha256
    lowest = min(decoded.probabilities) if decoded.probabilities and (good or target is not None) else None
    passage = PassageRecall(
        passage=stored.id, recalled=good, n_tokens=stored.n_tokens, min_probability=lowest, text=text
    )
    return passage, None if good else _failure(tokenizer, stored, target, decoded)


def target_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Text of decoded ids without a final stop token, read in the context of their prompt."""
    kept = list(ids[:-1]) if ids and ids[-1] == tokenizer.eos_token_id else list(ids)
    prompt = _text(tokenizer, list(prompt_ids))
    whole = _text(tokenizer, [*prompt_ids, *kept])
    return whole[len(prompt) :] if whole.startswith(prompt) else _text(tokenizer, kept)


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _failure(
    tokenizer: PreTrainedTokenizerBase, stored: PassageAddress, target: EncodedPassage | None, decoded: Decoded
) -> RecallFailure:
    if target is None:
        return RecallFailure(
            passage=stored.id, position=-1, expected="(the corpus is not at hand)", got="another text", probability=None
        )
    pairs = zip(target.target_ids, (*decoded.ids, *[None] * stored.n_tokens), strict=False)
    position = next((i for i, (expected, got) in enumerate(pairs) if expected != got), stored.n_tokens - 1)
    got = _text(tokenizer, [decoded.ids[position]]) if position < len(decoded.ids) else "(nothing)"
    return RecallFailure(
        passage=stored.id,
        position=position,
        expected=_text(tokenizer, [target.target_ids[position]]),
        got=got,
        probability=decoded.probabilities[position],
    )


# ---------------------------------------------------------------- the fresh process
def _decode_afresh(job: DecodeJob) -> Iterator[Decoded]:
    """One `Decoded` a passage, from a Python process that was just started."""
    command = [sys.executable, "-P", "-m", "lorasize.recall"]  # -P: no module from the folder one happens to be in
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryFile("w+") as complaints:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # it died at its start: the message below says of what
                process.stdin.write(job.model_dump_json())
                process.stdin.close()
            for line in process.stdout:
                yield Decoded.model_validate_json(line)
        if process.returncode:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or ["no message"])[-1]
            raise ModelError(f"decoding in a fresh process failed: {last}")


def main() -> None:
    """The fresh process: a DecodeJob on standard input, one Decoded a line on standard output."""
    job = DecodeJob.model_validate_json(sys.stdin.read())
    try:
        for decoded in _decode(job):
            sys.stdout.write(decoded.model_dump_json() + "\n")
            sys.stdout.flush()
    except LorasizeError as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    main()
