"""The command capacity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.output import emit, parse_reports, require_plain, spare_inputs


@click.command(
    epilog="""\b
Example:
  lorasize capacity handbook.md --rank 16
  lorasize capacity --rank 16 --target-modules q_proj,v_proj --layers all
"""
)
@click.argument("sample", required=False, type=options.existing_file)
@click.option("--rank", type=click.IntRange(1, options.MAX_RANK), required=True, help="Rank of the adapter.")
@options.all_of(options.target_modules, options.at_layers)
@options.all_of(options.model, options.revision, options.device, options.dtype, options.quantize, options.device_map)
@click.option("--calibration", type=options.existing_file, help="Calibration file, instead of the nearest that fits.")
@click.option(
    "--confidence", type=options.PROBABILITY, default=0.9, show_default=True, help="Chance that every token is held."
)
@click.option(
    "--max-drift", callback=options.drift, metavar="NATS|off", allow_from_autoenv=False,
    help="What other text may move by, nats per token; off for no bound.",
)  # fmt: skip
@options.all_of(options.quiet, options.plain_report)
@click.pass_obj
def capacity(invocation: Invocation, /, sample: Path | None, **chosen: Any) -> int:
    """Say how much text an adapter of this rank can hold word for word: tokens drawn at random, and tokens like SAMPLE.

    SAMPLE is a file of text; without one, tokens of general prose are counted. Nothing is trained.
    """
    targets = parse_reports(chosen["reports"])
    require_plain(targets, "a capacity")
    spare_inputs(targets, (sample, chosen["calibration"]))
    invocation.model = chosen["model"]
    from lorasize import models
    from lorasize.report import Progress
    from lorasize.verbs import capacity as verb

    names = ("rank", "revision", "device", "dtype", "device_map", "calibration", "layers", "confidence", "max_drift")
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("loading the model")
        found = verb.capacity(
            ref=chosen["model"] or models.BUILTIN, sample=sample, quantization=options.quantization(chosen),
            target_modules=options.split_modules(chosen["target_modules"]), **{name: chosen[name] for name in names},
        )  # fmt: skip
    emit(found, targets)
    return DONE
