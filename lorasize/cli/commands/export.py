"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.commands.verify import verdict
from lorasize.cli.engines import chosen_llama_cpp, llama_cpp, refuse_for_export
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.output import say

if TYPE_CHECKING:
    from lorasize.records import RecallReport

FORMATS = ("gguf", "merged", "ollama")
_UNPROVEN = {
    "gguf": "not proven: no engine has decoded with this file yet; with --prove llama.cpp does",
    "merged": "not proven: nothing has decoded from this folder yet; with --prove a fresh process does",
    "ollama": "not proven: no engine has decoded with this adapter yet; with --prove llama.cpp does",
}
_OLLAMA = "Ollama itself was not run: check there what it answers"


@click.command(
    epilog="""\b
Example:
  lorasize export adapter
  lorasize export adapter --format gguf --out facts.gguf --prove
  lorasize export adapter --format merged --dtype bfloat16 --prove
  llama-server -m base.gguf --lora "$(lorasize export adapter)"
  lorasize export adapter --format ollama --out facts
"""
)
@click.argument("adapter", type=options.existing_folder)
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="gguf", show_default=True, allow_from_autoenv=False,
    help="gguf: the LoRA as llama.cpp loads it. merged: a model folder with the adapter in its weights. ollama: a "
    "folder with the LoRA and a Modelfile.",
)  # fmt: skip
@click.option(
    "--out", type=options.any_path, help="The file or folder; by default beside ADAPTER, with its name.",
    allow_from_autoenv=False,
)  # fmt: skip
@click.option(
    "--prove", is_flag=True,
    help="Decode with what was written, by llama.cpp or, of a merged model, in a fresh process; exit with 4 on any "
    "loss.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(options.DTYPES), default="auto", show_default=True,
    help="Of a merged model's weights; auto is the one that the adapter was proven in.",
)  # fmt: skip
@options.all_of(llama_cpp, options.model, options.revision, options.quiet)
@click.pass_obj
def export(
    invocation: Invocation, /, adapter: Path, kind: str, out: Path | None, prove: bool, **chosen: Any
) -> int:
    """Write ADAPTER in the form that another engine loads, and print the name of the file or folder.

    Refused are weights that are not those that were proven, and architectures whose names are not known. Writing
    proves nothing: with --prove what was written is decoded with.
    """
    refuse_for_export(kind, prove=prove)
    invocation.model = options.unless_configured("model", chosen["model"])
    from lorasize.verbs import export as verb

    named: Any = {"ref": invocation.model, "revision": options.unless_configured("revision", chosen["revision"])}
    known: Any = {"kind": kind, "dtype": chosen["dtype"], "served": chosen["engine_model"]}
    written = verb.export(adapter, out, **known, **named)
    report = _proof(adapter, written, kind, chosen, named) if prove else None
    if not chosen["quiet"]:
        said = _UNPROVEN[kind] if report is None else _said(report)
        say(f"{said}\n{_OLLAMA}" if kind == "ollama" else said)
    click.echo(str(written))
    return DONE if report is None else verdict(report)


def _proof(adapter: Path, written: Path, kind: str, chosen: dict[str, Any], named: dict[str, Any]) -> RecallReport:
    """What is decoded with what was written."""
    from lorasize.artifacts.modelfile import ADAPTER
    from lorasize.recall.engines.merged import Merged
    from lorasize.verbs.verify import verify

    if kind == "merged":
        return verify(adapter, engine=Merged(written, chosen["dtype"]), **named)
    file = written / ADAPTER if kind == "ollama" else written
    return verify(adapter, engine=chosen_llama_cpp(chosen, file), **named)


def _said(report: RecallReport) -> str:
    """The verdict, and what decoded."""
    from lorasize.report.facts.recall import decoding_line, failure_rows, recall_verdict

    lost = [f"{passage}: {why}" for passage, why in failure_rows(report.failures)]
    return "\n".join([recall_verdict(report), *lost, decoding_line(report)])
