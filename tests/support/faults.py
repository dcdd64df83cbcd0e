"""What the processes do that are killed: one verb on a tiny model, in a process forked from a server that has torch."""

from __future__ import annotations

from pathlib import Path


def calibrate_here(model: str, folder: str) -> None:
    """Calibrate into the folder; a journal lies there meanwhile."""
    from lorasize.verbs.calibrate import calibrate

    _prepare()
    calibrate(model, device="cpu", preset="quick", max_drift=None, folder=Path(folder))


def apply_here(plan: str, out: str) -> None:
    """Apply the plan; decodes in this process, since a fresh one takes seconds to start and does the same."""
    from lorasize.artifacts.plans import read_plan
    from lorasize.recall import decoding, verdict
    from lorasize.training import run as session
    from lorasize.training.run import ApplyOptions
    from lorasize.verbs.apply import apply

    _prepare()
    verdict.decode_afresh = decoding.decode
    session.CHECKPOINT_SECONDS = 0.02  # so that there is something to lose between two checkpoints, and to keep
    apply(read_plan(Path(plan)), Path(out), ApplyOptions(device="cpu"))


def _prepare() -> None:
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # sums in one order, whatever else the machine does


def command(arguments: list[str], said: str) -> None:
    """The command line with these arguments; what it says goes into a file. Ends with its exit code."""
    import os
    import sys

    from lorasize import cli
    from lorasize.recall import decoding, verdict
    from lorasize.training import run as session

    handle = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    _prepare()
    verdict.decode_afresh = decoding.decode
    # After every epoch: what lies on the disk, and when, is not for time to say.
    session.CHECKPOINT_SECONDS = session.CHECKPOINT_SHARE = 0.0
    code = cli.main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
