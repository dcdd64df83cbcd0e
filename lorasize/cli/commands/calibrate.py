"""The command calibrate."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, Invocation
from lorasize.cli.options import model_ref
from lorasize.cli.output import emit, parse_reports, spare, spare_inputs


@click.command(
    epilog="""\b
Example:
  lorasize calibrate
  lorasize calibrate owner/model --device cuda --preset thorough
"""
)
@click.argument("base_model", metavar="[MODEL]", required=False)
@options.all_of(options.model, options.revision, options.device, options.dtype, options.attn)
@options.all_of(options.quantize, options.device_map, options.seed)
@click.option(
    "--preset", type=click.Choice(options.PRESETS), default="quick", show_default=True,
    help="How much is probed. brief: under the bound alone, with the nearest calibration's law of bare minima.",
)
@click.option(
    "--max-drift", callback=options.drift, metavar="NATS|off",
    help="Bound of the last probes, which train as apply does: nats per token; 0.02 by default. off: no such probes.",
)  # fmt: skip
@click.option(
    "--add-to", type=options.existing_file, metavar="FILE",
    help="Calibration of this model without probes under that bound: only these are run, and added to it.",
)  # fmt: skip
@click.option("--corpus", type=options.existing_file, multiple=True, help="Probe on text of this kind too; repeatable.")
@click.option("--time-limit", callback=options.duration, metavar="TIME", help='No further probe after, say, "15 min".')
@click.option(
    "--executor", default="local", show_default=True, metavar="WHERE", help="local, ray or ray://host:port."
)
@click.option("--workers", type=options.AT_LEAST_ONE, default=1, show_default=True, help="Probes at the same time.")
@options.out("calibrations", "Folder, or a file that ends in .json.")
@options.output
@click.pass_obj
def calibrate(invocation: Invocation, /, base_model: str | None, **chosen: Any) -> int:
    """Measure how much an adapter of MODEL can hold, by small training runs on this device.

    An interrupted calibration goes on where it stopped when the same command is run again.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, chosen["corpus"])
    if chosen["out"].suffix == ".json":
        spare(chosen["out"], "lorasize.calibration")
    invocation.model = model_ref(base_model, chosen["model"])
    from lorasize import models
    from lorasize.artifacts.calibrations import read_calibration
    from lorasize.probing import executor
    from lorasize.report import Progress
    from lorasize.verbs import calibrate as verb

    out: Path = chosen["out"]
    single = out.suffix == ".json"
    folder = out.with_name(f".{out.name}.partial") if single else out
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("loading the model")
        calibration, path = verb.calibrate(
            invocation.model or models.BUILTIN, revision=chosen["revision"], device=chosen["device"],
            dtype=chosen["dtype"], attn=chosen["attn"], quantization=options.quantization(chosen),
            device_map=chosen["device_map"], preset=chosen["preset"], corpus=chosen["corpus"],
            seed=chosen["seed"], time_limit=chosen["time_limit"], max_drift=_bound(chosen["max_drift"]), folder=folder,
            known=None if chosen["add_to"] is None else read_calibration(chosen["add_to"]),
            execute=executor(chosen["executor"], chosen["workers"]), notify=progress.probe,
        )  # fmt: skip
        if single:
            path = _move(path, out)
        progress.note(f"wrote {path}")
    emit(calibration, targets)
    return DONE


def _bound(asked: float | None) -> float | None:
    from lorasize.records import MAX_DRIFT

    return MAX_DRIFT if asked is None else asked if math.isfinite(asked) else None


def _move(path: Path, out: Path) -> Path:
    os.replace(path, out)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return out
