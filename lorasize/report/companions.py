"""What an HTML report shows beside its record, where it is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorasize.corpus.surprise import Surprise
    from lorasize.planning import Assessment
    from lorasize.records import Calibration, RecallReport, StepReport


@dataclass(frozen=True)
class Companions:
    """Of a plan: its calibration, the ranks at its site, its corpus by token. Of an apply: its steps and its recall."""

    calibration: Calibration | None = None
    ladder: Sequence[Assessment] = ()
    passages: Sequence[Surprise] = ()
    steps: Sequence[StepReport] = ()
    recall: RecallReport | None = None
