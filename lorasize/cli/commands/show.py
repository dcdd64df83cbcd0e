"""The commands show and base: any artifact, and the folder of a base model."""

from __future__ import annotations

import os
from pathlib import Path

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.options import model_ref
from lorasize.cli.output import emit, parse_reports, require_plain, spare_inputs


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
    from lorasize.records import Capacity, Config

    spare_inputs(targets, (file,))
    record = read_artifact(file)
    if isinstance(record, Config | Capacity):
        require_plain(targets, "a configuration" if isinstance(record, Config) else "a capacity")
    emit(record, targets, lambda: companions.of_artifact(file, record))
    return DONE


@click.command(
    epilog="""\b
Example:
  lorasize base
  vllm serve "$(lorasize base adapter)" --enable-lora --lora-modules a=adapter
"""
)
@click.argument("base_model", metavar="[MODEL|ADAPTER]", required=False)
@options.all_of(options.model, options.revision)
@click.pass_obj
def base(invocation: Invocation, /, base_model: str | None, model: str | None, revision: str | None) -> int:
    """Print the folder that stock transformers loads as the base model, converted or fetched when needed.

    Of an ADAPTER folder: the model it was proven on.
    """
    invocation.model = model_ref(base_model, model)
    from lorasize import models
    from lorasize.artifacts.adapter_folder import CONFIG

    ref = invocation.model or models.BUILTIN
    if os.path.isfile(os.path.join(ref, CONFIG)):
        click.echo(str(_base_of(Path(ref), options.unless_configured("revision", revision))))
    else:
        click.echo(str(models.resolve(ref, revision)))
    return DONE


def _base_of(adapter: Path, revision: str | None) -> Path:
    from lorasize import models
    from lorasize.artifacts.adapter_folder import read_record
    from lorasize.models.fingerprint import check_base

    record = read_record(adapter)
    folder = models.recorded_base(adapter, record, revision)
    check_base(record.model_fingerprint, models.fingerprint(folder), record.plan.model.ref)
    return folder
