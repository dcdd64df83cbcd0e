"""The verb verify: an adapter folder in, a verdict per passage out, by a fresh process or by another engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorasize import models
from lorasize.artifacts.adapter_folder import PASSAGES, changed_files, check_weights, read_addresses, read_record
from lorasize.artifacts.files import text_digest
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.models.fingerprint import check_base
from lorasize.recall.engines.decode import Other, decode_by
from lorasize.recall.generation_config import SETTINGS
from lorasize.recall.verdict import DecodeSettings, Notify, decode_and_compare
from lorasize.records import Memorization, PassageAddress, RecallReport, RecallSummary

_RENDERED = (
    "The chat template renders {n} of the prompts otherwise today, the first at {first}: it prints the time, or draws "
    "at random. Decoded are the prompts as they were memorised; a server must send those, the prompt_ids in "
    "passages.jsonl."
)


def verify(
    folder: Path,
    encoded: Sequence[EncodedPassage] | None = None,
    *,
    ref: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    merged: bool = False,
    attn_implementation: str = "auto",
    quantize: str = "auto",
    device_map: str | None = None,
    same_corpus: bool = False,
    engine: Other | None = None,
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
        batch_size: Prompts decoded together, padded on the left; None: as in `DecodeSettings`.
        merged: Whether the adapter is added to the base's weights, in their dtype, before.
        attn_implementation: Attention kernel, such as eager or sdpa; auto is the best that the model has here.
        quantize: What plain weights of the base are quantised to: nf4, int8 or none; `auto` as it was proven.
        device_map: How to spread the base over devices (`models.placement`); all on one when None.
        same_corpus: Whether the corpus has the bytes that the plan was made for, and the chat template goes by the
            clock or by chance: a prompt that it renders otherwise today is then taken as it was memorised, and said.
        engine: What decodes in place of transformers, to which `device` to `device_map` are of no interest.
        notify: Told (passages done, passages).

    Raises:
        ModelError: a file is missing or damaged, the base is another one, the corpus is not the adapter's, or the
            engine fails.
    """
    record, addresses, changed = _read(folder)
    base = models.resolve(ref, revision) if ref else models.recorded_base(folder, record, revision)
    check_base(record.model_fingerprint, models.fingerprint(base), ref or record.plan.model.ref)
    moved: tuple[str, ...] = ()
    if encoded is not None and same_corpus:
        encoded, moved = _as_memorised(addresses, encoded)
    targets = _matched(addresses, encoded) if encoded is not None else None
    judged: Any = {"threshold": record.threshold, "notify": notify}
    if engine is not None:
        judged |= {"ref": ref or record.plan.model.ref, "dtype": record.recall.dtype}
        report = decode_by(engine, folder, base, addresses, targets, **judged)
    else:
        weights = record.recall.quantization if quantize == "auto" else None if quantize == "none" else quantize
        settings = DecodeSettings(device, dtype, batch_size, merged, attn_implementation, weights, device_map)
        report = decode_and_compare(folder, base, addresses, targets, settings, **judged)
        if record.recall.warnings is not None and _settings(report) != _settings(record.recall):
            changed = (*changed, f"{SETTINGS} of the base")  # servers read it, though decoding here does not
    return report.model_copy(update={"changed_files": changed, "warnings": (*report.warnings, *moved)})


def _read(folder: Path) -> tuple[Memorization, list[PassageAddress], tuple[str, ...]]:
    """The record, the passages, and which files are not those that were proven."""
    record = read_record(folder)
    addresses = read_addresses(folder)
    check_weights(folder)
    changed = changed_files(folder)
    if len(addresses) != record.recall.n_passages:
        raise ModelError(f"{folder / PASSAGES}: {len(addresses)} passages, {record.recall.n_passages} were proven")
    return record, addresses, changed


def _as_memorised(
    addresses: Sequence[PassageAddress], encoded: Sequence[EncodedPassage]
) -> tuple[list[EncodedPassage], tuple[str, ...]]:
    """The passages with the prompts that were memorised, and a warning of chats that are rendered otherwise today.

    Of one corpus and one tokenizer: only the chat template, by the clock or by chance, makes another prompt.
    """
    known = {stored.id: stored for stored in addresses}
    found, moved = [], []
    for one in encoded:
        stored = known.get(one.passage.id)
        if stored is not None and one.passage.messages and one.prompt_ids != stored.prompt_ids:
            moved.append(f"{stored.file}:{stored.line}")
            one = replace(one, prompt_ids=stored.prompt_ids)
        found.append(one)
    return found, (_RENDERED.format(n=len(moved), first=moved[0]),) if moved else ()


def _settings(report: RecallReport | RecallSummary) -> list[str]:
    """What was said of the base's settings for decoding."""
    return [warning for warning in report.warnings or () if warning.startswith(SETTINGS)]


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
