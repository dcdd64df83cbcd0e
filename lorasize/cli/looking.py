"""The commands that look at what was made: verify, check, show, base. Each gives its verdict as an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.commands import PLAN_FILE, model_ref
from lorasize.cli.failures import CALIBRATION, DONE, INFEASIBLE, NOT_PROVEN, OVER_BUDGET, Invocation
from lorasize.cli.output import emit, parse_reports, spare_inputs

if TYPE_CHECKING:
    from lorasize.records import Memorization, RecallReport
    from lorasize.tokens import EncodedPassage


# ---------------------------------------------------------------- verify
@click.command(
    epilog="""\b
Example:
  lorasize verify adapter
  lorasize verify adapter page.md table.jsonl --report json
  lorasize verify adapter --merged --dtype bfloat16 --batch-size 8
"""
)
@click.argument("adapter", type=options.existing_folder)
@click.argument("corpus", nargs=-1, type=options.any_path)
@options.all_of(options.model, options.revision, options.device, options.dtype, options.decoding, options.output)
@click.pass_obj
def verify(invocation: Invocation, /, adapter: Path, corpus: tuple[Path, ...], **chosen: Any) -> int:
    """Check in a fresh process that ADAPTER, as it lies on disk, recalls its passages.

    CORPUS defaults to the files the plan names, as long as they are unchanged; without any, digests are compared.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, corpus)
    invocation.model, revision = _asked("model", chosen["model"]), _asked("revision", chosen["revision"])
    from lorasize import adapter_folder, recall
    from lorasize.report import Progress

    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("reading the adapter")
        record = adapter_folder.read_record(adapter)
        encoded = _corpus_of(record, corpus, invocation.model, revision)
        if encoded is None:
            progress.note("the corpus is not at hand: texts are compared by their digests")
        progress.doing("decoding in a fresh process")
        found = recall.verify(
            adapter, encoded, ref=invocation.model, revision=revision, device=chosen["device"],
            dtype=_dtype(chosen["dtype"], record), batch_size=chosen["batch_size"],
            merged=record.recall.merged if chosen["merged"] is None else chosen["merged"],
            attn_implementation=chosen["attn"], notify=progress.decoded,
        )  # fmt: skip
    emit(found, targets)
    return verdict(found)


def verdict(report: RecallReport) -> int:
    """The exit code of a recall report."""
    return DONE if report.recalled and report.threshold_met and not report.changed_files else NOT_PROVEN


def _asked(name: str, value: str | None) -> str | None:
    """The value unless a configuration file set it: an adapter knows its own base model better."""
    source = click.get_current_context().get_parameter_source(name)
    return None if source is click.core.ParameterSource.DEFAULT_MAP else value


def _dtype(asked: str, record: Memorization) -> str:
    """The dtype asked for; `auto` is the one the adapter was proven in."""
    return record.recall.dtype if asked == "auto" else asked


def _corpus_of(
    record: Memorization, corpus: tuple[Path, ...], ref: str | None, revision: str | None
) -> list[EncodedPassage] | None:
    """The corpus encoded: the files named, else the plan's own while unchanged, else None."""
    from lorasize import adapter_folder, models
    from lorasize.corpus import read_corpus
    from lorasize.errors import LorasizeError
    from lorasize.tokens import encode_corpus

    planned = record.plan.corpus
    if not corpus and not all(_unchanged(Path(file.path), file.sha256) for file in planned.files):
        return None
    passages, _ = read_corpus(corpus or [Path(file.path) for file in planned.files], planned.reading)
    planned_revision = None if ref else record.plan.model.revision
    folder = models.resolve(ref or record.plan.model.ref, revision or planned_revision)
    try:
        tokenizer = models.load_tokenizer(folder)
        return encode_corpus(passages, tokenizer, planned.reading, models.max_positions(folder))
    except LorasizeError:
        # another base explains more
        adapter_folder.check_base(record.model_fingerprint, folder, ref or record.plan.model.ref)
        raise


def _unchanged(path: Path, sha256: str) -> bool:
    from lorasize import models

    return path.is_file() and models.file_sha256(path) == sha256


# ---------------------------------------------------------------- check
@click.command(
    epilog="""\b
Example:
  lorasize check
  lorasize check facts.plan.json --max-parameters 20000 --report github
"""
)
@click.argument("plan_file", metavar="[PLAN]", type=options.any_path, default=PLAN_FILE)
@options.budgets
@options.output
@click.pass_obj
def check(invocation: Invocation, /, plan_file: Path, **chosen: Any) -> int:
    """Check PLAN (lorasize.plan.json) against the corpus on disk and the budgets, without a model.

    Exits with 1 over budget, with 3 when corpus, calibration or recipe changed since, and with 5 when no rank can hold
    the corpus.
    """
    targets = parse_reports(chosen["reports"])
    from lorasize import gate
    from lorasize.catalog import read_plan

    read = read_plan(options.there(plan_file))
    invocation.corpus = tuple(file.path for file in read.corpus.files)
    spare_inputs(targets, (plan_file, *map(Path, invocation.corpus)))
    found = gate.check(read, str(plan_file), options.limits_of(chosen))
    emit(found, targets)
    return {"ok": DONE, "over_budget": OVER_BUDGET, "stale": CALIBRATION, "infeasible": INFEASIBLE}[found.status]


# ---------------------------------------------------------------- show, base
@click.command(
    epilog="""\b
Example:
  lorasize show lorasize.plan.json
  lorasize show adapter --report json
"""
)
@click.argument("file", type=options.existing)
@options.output
def show(file: Path, reports: tuple[str, ...], quiet: bool) -> int:  # noqa: ARG001 - there is nothing to silence
    """Show a calibration, a plan, a report, or what an adapter folder says of itself."""
    from lorasize.cli.artifacts import read_artifact

    targets = parse_reports(reports)
    from lorasize.cli import beside
    from lorasize.cli.settings import require_formats
    from lorasize.records import Config

    spare_inputs(targets, (file,))
    record = read_artifact(file)
    if isinstance(record, Config):
        require_formats(targets)
    emit(record, targets, lambda: beside.of_artifact(file, record))
    return DONE


@click.command(
    epilog="""\b
Example:
  lorasize base
  vllm serve "$(lorasize base)" --enable-lora --lora-modules facts=adapter
"""
)
@click.argument("base_model", metavar="[MODEL]", required=False)
@options.all_of(options.model, options.revision)
@click.pass_obj
def base(invocation: Invocation, /, base_model: str | None, model: str | None, revision: str | None) -> int:
    """Print the folder that stock transformers loads as the base model."""
    invocation.model = model_ref(base_model, model)
    from lorasize import models

    click.echo(str(models.resolve(invocation.model or models.BUILTIN, revision)))
    return DONE


COMMANDS = (verify, check, show, base)
