"""The commands show and base: any artifact, and the base model's folder."""

from __future__ import annotations

from pathlib import Path

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.options import model_ref
from lorasize.cli.output import emit, parse_reports, spare_inputs


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
    from lorasize.artifacts.read_any import read_artifact

    targets = parse_reports(reports)
    from lorasize.cli import companions
    from lorasize.cli.commands.config import require_formats
    from lorasize.records import Config

    spare_inputs(targets, (file,))
    record = read_artifact(file)
    if isinstance(record, Config):
        require_formats(targets)
    emit(record, targets, lambda: companions.of_artifact(file, record))
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
