"""The command verify."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.engines import chosen_engine, engine
from lorasize.cli.failures import DONE, NOT_PROVEN, Invocation
from lorasize.cli.output import emit, parse_reports, spare_inputs

if TYPE_CHECKING:
    from lorasize.corpus.tokens import EncodedPassage
    from lorasize.records import Memorization, RecallReport


@click.command(
    epilog="""\b
Example:
  lorasize verify adapter
  lorasize verify adapter page.md table.jsonl --report json
  lorasize verify adapter --merged --dtype bfloat16 --batch-size 8
  lorasize verify adapter --engine llama.cpp --engine-model base.Q8_0.gguf
  lorasize verify adapter --engine vllm --engine-python vllm/bin/python
  lorasize verify adapter --engine http://host:8000/v1 --served-model facts
"""
)
@click.argument("adapter", type=options.existing_folder)
@click.argument("corpus", nargs=-1, type=options.any_path)
@options.all_of(options.model, options.revision, options.device, options.dtype)
@options.all_of(options.quantize_as_proven, options.device_map, options.decoding, engine, options.output)
@click.pass_obj
def verify(invocation: Invocation, /, adapter: Path, corpus: tuple[Path, ...], **chosen: Any) -> int:
    """Check in a fresh process that ADAPTER, as it lies on disk, recalls its passages; or in the engine that serves it.

    CORPUS defaults to the files the plan names, as long as they are unchanged; without any, digests are compared.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, (*corpus, chosen["engine_model"]))
    asked = chosen_engine(chosen)
    invocation.model = options.unless_configured("model", chosen["model"])
    revision = options.unless_configured("revision", chosen["revision"])
    from lorasize.artifacts import adapter_folder
    from lorasize.report import Progress
    from lorasize.verbs import verify as verb

    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("reading the adapter")
        record = adapter_folder.read_record(adapter)
        encoded, same = _corpus_of(adapter, record, corpus, invocation.model, revision)
        if encoded is None:
            progress.note("the corpus is not at hand: texts are compared by their digests")
        progress.doing("decoding in a fresh process" if asked is None else "decoding by the engine")
        report = verb.verify(
            adapter, encoded, ref=invocation.model, revision=revision, device=chosen["device"],
            dtype=_dtype(chosen["dtype"], record), batch_size=chosen["batch_size"],
            merged=record.recall.merged if chosen["merged"] is None else chosen["merged"],
            attn_implementation=_attn(chosen["attn"], record), notify=progress.decoded,
            quantize=chosen["quantize_as"], device_map=chosen["device_map"], same_corpus=same,
            engine=asked,
        )  # fmt: skip
    emit(report, targets)
    return verdict(report)


def verdict(report: RecallReport) -> int:
    """The exit code of a recall report."""
    from lorasize.report.facts.recall import is_proven

    return DONE if is_proven(report) else NOT_PROVEN


def _dtype(asked: str, record: Memorization) -> str:
    """The dtype asked for; `auto` is the one the adapter was proven in."""
    return record.recall.dtype if asked == "auto" else asked


def _attn(asked: str, record: Memorization) -> str:
    """The attention kernel asked for; `auto` is the one the adapter was proven with."""
    return record.recall.attn_implementation if asked == "auto" else asked


def _corpus_of(
    adapter: Path, record: Memorization, corpus: tuple[Path, ...], ref: str | None, revision: str | None
) -> tuple[list[EncodedPassage] | None, bool]:
    """The corpus encoded: the files named, else the plan's own while unchanged, else None.

    And whether it is the plan's byte for byte, with a chat template that may render it otherwise today.
    """
    from lorasize import models
    from lorasize.corpus import corpus_sha256, read_corpus
    from lorasize.corpus.chat_prompt import moves
    from lorasize.corpus.tokens import encode_corpus
    from lorasize.errors import LorasizeError
    from lorasize.models.fingerprint import check_base

    planned = record.plan.corpus
    if not corpus and not all(_is_unchanged(Path(file.path), file.sha256) for file in planned.files):
        return None, False
    named = corpus or [Path(file.path) for file in planned.files]
    passages, files = read_corpus(named, planned.reading, planned.files)
    same = corpus_sha256(files) == planned.sha256
    folder = models.resolve(ref, revision) if ref else models.recorded_base(adapter, record, revision)
    try:
        tokenizer = models.load_tokenizer(folder)
        sizes = models.max_positions(folder), models.n_ids(folder)
        encoded = encode_corpus(passages, tokenizer, planned.reading, *sizes)
        return encoded, same and moves(tokenizer, passages, planned.reading)
    except LorasizeError:
        # another base explains more
        check_base(record.model_fingerprint, models.fingerprint(folder), ref or record.plan.model.ref)
        raise


def _is_unchanged(path: Path, sha256: str) -> bool:
    """Whether a file is as it was, but perhaps for its line ends."""
    from lorasize.artifacts.files import file_sha256
    from lorasize.corpus.files import as_planned, read_bytes

    if not path.is_file():
        return False
    return file_sha256(path) == sha256 or hashlib.sha256(as_planned(read_bytes(path), sha256)).hexdigest() == sha256
