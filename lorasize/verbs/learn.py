"""What a finished apply teaches: its observation joins the calibration that planned it, and the law is fitted again.

Shipped calibrations are never changed in place; asked to learn from one, a copy in the project's folder does. The
calibration remembers what it was, so that plans made from it before are not stale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from lorasize.artifacts.calibrations import FOLDER, find_by_digest, is_shipped, read_calibration, write_calibration
from lorasize.artifacts.workspace import locked
from lorasize.errors import FitError
from lorasize.law.observations import refit
from lorasize.records import Calibration, Observation, digest


@dataclass(frozen=True)
class Learned:
    """The calibration's file, before and after."""

    path: Path
    before: Calibration
    after: Calibration


def learn(calibration_sha256: str, observation: Observation, *, copy_shipped: bool = False) -> Learned | str:
    """Add an observation to the calibration with this digest; else why it was not added.

    Not when that calibration is no longer in reach, is a shipped one (unless it may be copied to ./calibrations, where
    nothing is replaced), was made with another recipe, or holds this run already.

    Raises:
        ModelError: another run is at work on the file, or it cannot be written.
    """
    in_reach = find_by_digest(calibration_sha256)
    if in_reach is None:
        return "the calibration that the plan was made from is not here"
    calibration, path = in_reach
    if not is_shipped(path):
        with locked(path.with_name(f".{path.name}.lock"), str(path)):
            return _joined(read_calibration(path), path, observation)
    if not copy_shipped:
        return f"{path} came with lorasize: only a copy of it learns"
    path = Path(FOLDER) / path.name
    with locked(path.with_name(f".{path.name}.lock"), str(path)):
        if path.exists():
            return f"{path} is another calibration: it is not replaced"
        return _joined(calibration, path, observation)


def _joined(before: Calibration, path: Path, observation: Observation) -> Learned | str:
    if before.recipe != observation.probe.recipe:
        return f"{path} is for training recipe {before.recipe}"
    under = () if before.bounded is None else before.bounded.observations
    if any(_same_run(o, observation) for o in (*before.observations, *under)):
        return f"{path} holds this run already"
    try:
        after = refit(before, observation)
    except FitError as error:  # one odd run must not cost a calibration
        return f"{path} cannot be fitted with this run: {error}"
    after = after.model_copy(update={"grown_from": (*before.grown_from, digest(before))})
    write_calibration(after, path)
    return Learned(path, before, after)


def _same_run(one: Observation, other: Observation) -> bool:
    """Whether these are runs of one plan with one seed, whatever time they took."""
    return one.probe == other.probe and math.isclose(one.base_loss, other.base_loss, rel_tol=1e-6)
