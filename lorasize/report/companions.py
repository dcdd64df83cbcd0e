"""What an HTML report shows beside its record, where it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorasize.corpus.surprise import Surprise
    from lorasize.records import Calibration, RecallReport, StepReport


@dataclass(frozen=True)
class Companions:
    """Of a plan: its calibration, and its corpus token by token. Of an apply: its steps, and its recall report."""

    calibration: Calibration | None = None
    passages: Sequence[Surprise] = ()
    steps: Sequence[StepReport] = ()
    recall: RecallReport | None = None
