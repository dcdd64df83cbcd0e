"""The command export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.output import say

FORMATS = ("gguf",)
_UNPROVEN = "not proven: no engine has decoded with this file yet; `lorasize verify {folder} --engine llama.cpp` does"


@click.command(
    epilog="""\b
Example:
  lorasize export adapter
  lorasize export adapter --format gguf --out facts.gguf
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
@options.all_of(options.model, options.revision, options.quiet)
@click.pass_obj
def export(invocation: Invocation, /, adapter: Path, kind: str, out: Path | None, **chosen: Any) -> int:  # noqa: ARG001 - one format so far
    """Write ADAPTER in the form that another engine loads, and print the file's name.

    Refused are weights that are not those that were proven, and architectures whose names are not known. The new file
    is not proven by that.
    """
    invocation.model = options.unless_configured("model", chosen["model"])
    from lorasize.verbs import export as verb

    revision = options.unless_configured("revision", chosen["revision"])
    written = verb.export(adapter, out, ref=invocation.model, revision=revision)
    if not chosen["quiet"]:
        say(_UNPROVEN.format(folder=adapter))
    click.echo(str(written))
    return DONE
