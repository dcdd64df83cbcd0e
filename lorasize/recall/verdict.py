"""The verdict: what a fresh process decodes, against the target, passage by passage.

An adapter folder enters; a verdict for each passage leaves. The fresh process loads the base and the adapter with stock
transformers and PEFT and shares nothing with training but the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from transformers import __version__ as transformers_version

from lorasize import models
from lorasize.artifacts.files import text_digest
from lorasize.corpus.text import Decode, decoder, text_after
from lorasize.corpus.tokens import EncodedPassage
from lorasize.recall.generation_config import generation_warnings
from lorasize.recall.process import decode_afresh
from lorasize.records import (
    Decoded,
    DecodeJob,
    Engine,
    PassageAddress,
    PassageRecall,
    RecallFailure,
    RecallReport,
)

_ALONE = (
    "padding on the left changes what this model says of a prompt: passages were decoded one at a time, which a server "
    "has to do too"
)

_SHOWN = 20  # characters of a text that are shown where it leaves the target

Notify = Callable[[int, int], None]  # passages decoded so far, and in all


@dataclass(frozen=True)
class DecodeSettings:
    """How to decode.

    Attributes:
        device: Where.
        dtype: Of the base model.
        batch_size: Prompts decoded together, padded on the left; None: those of equal length, up to 16, unpadded, and
            on a card one at a time, by recorded steps.
        merged: Whether the adapter is added to the base's weights first, in their dtype.
        attn_implementation: Attention kernel, such as eager or sdpa; auto is the best that the model has here.
        quantization: What plain weights of the base are quantised to, "nf4" or "int8"; None: as they are.
        device_map: How to spread the base over devices (`models.placement`); None: all on one.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    merged: bool = False
    attn_implementation: str = "auto"
    quantization: str | None = None
    device_map: str | None = None


def decode_and_compare(
    folder: Path | None,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    settings: DecodeSettings,
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Decode every passage in a fresh process and compare ids and text with the target.

    Args:
        folder: The adapter folder; None where the base holds the adapter already.
        base: The base model's folder.
        addresses: The passages, as the folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        settings: How to decode.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.

    Raises:
        ModelError: base or adapter cannot be loaded, or the fresh process failed.
    """
    job = _job(folder, base, addresses, targets, settings)
    report = compare(job, base, addresses, targets, decode_afresh(job), threshold=threshold, notify=notify)
    return report.model_copy(update={"engine": Engine(name="transformers", version=transformers_version)})


def compare(
    job: DecodeJob,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    decoded: Iterable[Decoded],
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
    by_settings: bool = True,
) -> RecallReport:
    """What was decoded, by whichever engine, against the target: one rule for all of them.

    Args:
        job: What was to be decoded, and how.
        base: The base model's folder, whose tokenizer says what ids mean.
        addresses: The passages, as the folder names them.
        targets: The same passages with their ids; where None, texts are compared by their digests.
        decoded: What came, passage by passage; taken one at a time.
        threshold: What every target token's p must exceed.
        notify: Told after each passage.
        by_settings: Whether to warn of what the base's settings for decoding would do elsewhere.
    """
    tokenizer = models.load_tokenizer(base)
    passages, failures, seen = [], [], []
    for index, one in enumerate(decoded):
        target = targets[index] if targets is not None else None
        recalled, failure = _compare(tokenizer, addresses[index], target, one, threshold)
        passages.append(recalled)
        failures += [failure] if failure else []
        seen.append(one)
        notify(index + 1, len(addresses))
    report = _report(job, passages, failures, seen, threshold)
    wanted = job.targets or tuple(one.ids for one in seen)
    alone = (_ALONE,) if report.batch_size < (job.batch_size or 1) else ()
    elsewhere = generation_warnings(base, wanted, tokenizer.eos_token_id) if by_settings else ()
    return report.model_copy(update={"warnings": (*elsewhere, *alone)})


def _job(
    folder: Path | None,
    base: Path,
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    settings: DecodeSettings,
) -> DecodeJob:
    where = models.pick_device(settings.device)
    return DecodeJob(
        base=str(base),
        adapter=None if folder is None else str(folder),
        device=str(where),
        dtype=models.dtype_name(models.pick_dtype(settings.dtype, where)),
        prompts=tuple(a.prompt_ids for a in addresses),
        targets=tuple(t.target_ids for t in targets) if targets is not None else (),
        n_tokens=tuple(a.n_tokens for a in addresses),
        attn_implementation=settings.attn_implementation,
        batch_size=settings.batch_size,
        merged=settings.merged,
        quantization=models.quantized_as(base, settings.quantization),
        device_map=settings.device_map,
    )


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
        batch_size=max((one.batch_size for one in seen if one.batch_size), default=job.batch_size or 1),
        merged=job.merged,
        quantization=job.quantization,
        fresh_process=True,
    )


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    stored: PassageAddress,
    target: EncodedPassage | None,
    decoded: Decoded,
    threshold: float,
) -> tuple[PassageRecall, RecallFailure | None]:
    """The passage's verdict. Its smallest p is known where each token's is, or where one is not above the threshold."""
    told = decoded.text  # in place of ids
    text = target_text(tokenizer, stored.prompt_ids, decoded.ids) if told is None else told
    stopped = decoded.stopped or (bool(decoded.ids) and decoded.ids[-1] == tokenizer.eos_token_id)
    same_ids = target is None or decoded.ids == target.target_ids or told is not None
    good = same_ids and stopped and text_digest(text) == stored.target_sha256
    lowest = min(decoded.probabilities, default=None)
    whole = len(decoded.probabilities) == stored.n_tokens and (good or target is not None)
    if lowest is not None and not whole and not (good and lowest <= threshold):
        lowest = None
    passage = PassageRecall(
        passage=stored.id, recalled=good, n_tokens=stored.n_tokens, min_probability=lowest, text=text
    )
    if good:
        return passage, None
    if target is None:
        got = "another text" if stopped else "a text that does not stop"
        return passage, _without_place(stored, "(the corpus is not at hand)", got)
    if told is not None:
        return passage, _of_text(tokenizer, target, told, stopped, stored.id)
    if same_ids:
        why = "(every token is the target's, read otherwise by this tokenizer)"
        return passage, _without_place(stored, why, "another text")
    return passage, _failure(tokenizer, target, decoded, stored.id)


def target_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Text of decoded ids after their prompt, without a final stop token."""
    kept = ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
    return text_after(decoder(tokenizer), prompt_ids, kept)


def _without_place(stored: PassageAddress, why: str, got: str) -> RecallFailure:
    """A difference of texts, at no token."""
    return RecallFailure(passage=stored.id, position=-1, expected=why, got=got, probability=None)


def _failure(
    tokenizer: PreTrainedTokenizerBase, target: EncodedPassage, decoded: Decoded, passage: str
) -> RecallFailure:
    """The first token that differs. Tokens that read alike are given by their names in the vocabulary."""
    wanted, seen = target.target_ids, (*decoded.ids, *[None] * target.n_tokens)
    position = next(i for i, (expected, got) in enumerate(zip(wanted, seen, strict=False)) if expected != got)
    pair, before = (wanted[position], seen[position]), (*target.prompt_ids, *wanted[:position])
    expected, got = (_said(decoder(tokenizer), before, token) for token in pair)
    if expected == got:
        expected, got = (str(tokenizer.convert_ids_to_tokens([token])[0]) for token in pair if token is not None)
    return RecallFailure(
        passage=passage,
        position=position,
        expected=expected,
        got=got,
        probability=decoded.probabilities[position] if position < len(decoded.probabilities) else None,
    )


def _of_text(
    tokenizer: PreTrainedTokenizerBase, target: EncodedPassage, text: str, stopped: bool, passage: str
) -> RecallFailure:
    """The first token whose text is not in what a server wrote that tells no ids."""
    decode, ids = decoder(tokenizer), target.target_ids
    texts = [text_after(decode, target.prompt_ids, ids[:n]) for n in range(len(ids))]  # before each token
    position = max(n for n, before in enumerate(texts) if text.startswith(before))
    rest = text[len(texts[position]) :]
    got = rest[:_SHOWN] if rest else "(the end)" if stopped else "(nothing)"
    said = _said(decode, (*target.prompt_ids, *ids[:position]), ids[position])
    return RecallFailure(passage=passage, position=position, expected=said, got=got, probability=None)


def _said(decode: Decode, before: Sequence[int], token: int | None) -> str:
    return "(nothing)" if token is None else text_after(decode, before, [token])
