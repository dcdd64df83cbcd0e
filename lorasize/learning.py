"""What a finished apply teaches: its observation joins the calibration that planned it, and the law is fitted again.

Shipped calibrations are never changed in place; asked to learn from one, a copy in the project's folder does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorasize.catalog import FOLDER, find_by_digest, is_shipped, write_calibration
from lorasize.errors import FitError
from lorasize.fitting import refit
from lorasize.records import Calibration, Observation


@dataclass(frozen=True)
class Learned:
    """The calibration's file, before and after."""

    path: Path
    before: Calibration
    after: Calibration


def learn(calibration_sha256: str, observation: Observation, *, copy_shipped: bool = False) -> Learned | None:
    """Add an observation to the calibration with this digest.

    None when that calibration is no longer in reach, is a shipped one (unless it may be copied to ./calibrations), was
    made with another recipe, or holds the observation already.
    """
    found = find_by_digest(calibration_sha256)
    if found is None:
        return None
    before, path = found
    if is_shipped(path):
        if not copy_shipped:
            return None
        path = Path(FOLDER) / path.name
    if before.recipe != observation.probe.recipe or observation in before.observations:
        return None
    try:
        after = refit(before, observation)
    except FitError:  # one odd run must not cost a calibration
        return None
    write_calibration(after, path)
    return Learned(path, before, after)
