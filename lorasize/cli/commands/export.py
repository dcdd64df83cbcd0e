"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.commands.verify import verdict
from lorasize.cli.engines import chosen_llama_cpp, llama_cpp, refuse_without_proof
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.output import say

if TYPE_CHECKING:
    from lorasize.records import RecallReport

FORMATS = ("gguf",)
_UNPROVEN = "not proven: no engine has decoded with this file yet; with --prove llama.cpp does"


@click.command(
    epilog="""\b
Example:
  lorasize export adapter
  lorasize export adapter --format gguf --out facts.gguf --prove
  llama-server -m base.gguf --lora "$(lorasize export adapter)"
"""
)
@click.argument("adapter", type=options.existing_folder)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="gguf", show_default=True, allow_from_autoenv=False,
    help="gguf: the LoRA as llama.cpp loads it.",
)  # fmt: skip
@click.option(
    "--out", type=options.any_path, help="The file; by default beside ADAPTER, with its name.", allow_from_autoenv=False
)
@click.option("--prove", is_flag=True, help="Let llama.cpp decode with the file, and exit with 4 on any loss.")
@options.all_of(llama_cpp, options.model, options.revision, options.quiet)
@click.pass_obj
def export(
    invocation: Invocation, /, adapter: Path, kind: str, out: Path | None, prove: bool, **chosen: Any
) -> int:
    """Write ADAPTER in the form that another engine loads, and print the file's name.

    Refused are weights that are not those that were proven, and architectures whose names are not known. Writing the
    file proves nothing: with --prove it is decoded with.
    """
    if not prove:
        refuse_without_proof()
    invocation.model = options.unless_configured("model", chosen["model"])
    from lorasize.verbs import export as verb

    del kind  # one format so far
    revision = options.unless_configured("revision", chosen["revision"])
    written = verb.export(adapter, out, ref=invocation.model, revision=revision)
    report = None
    if prove:
        from lorasize.verbs.verify import verify

        how = chosen_llama_cpp(chosen, written)
        report = verify(adapter, ref=invocation.model, revision=revision, engine=how)
    if not chosen["quiet"]:
        say(_UNPROVEN if report is None else _said(report))
    click.echo(str(written))
    return DONE if report is None else verdict(report)


def _said(report: RecallReport) -> str:
    """The verdict, and what decoded."""
    from lorasize.report.facts.recall import decoding_line, failure_rows, recall_verdict

    lost = [f"{passage}: {why}" for passage, why in failure_rows(report.failures)]
    return "\n".join([recall_verdict(report), *lost, decoding_line(report)])
