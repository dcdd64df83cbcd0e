"""When to give up on an adapter: training that has stopped getting anywhere."""

from __future__ import annotations

from dataclasses import dataclass

from lorasize.records import StepReport

PATIENCE = 40  # epochs without progress after which an adapter counts as too small


@dataclass
class Stall:
    """Whether training has stopped getting anywhere.

    Progress is a new low in stubborn tokens, or a mean loss one percent below its best; without any for `patience`
    steps plus a quarter of the steps already spent, or after `limit` steps, the adapter counts as too small.
    """

    limit: int
    patience: int = PATIENCE
    fewest: int = 2**62
    lowest: float = float("inf")
    since: int = 0

    def seen(self, step: int, report: StepReport, *, harmed: bool = False) -> bool:
        """Take note of a report, `step` steps into this adapter; whether training has stalled.

        Not while other text is `harmed`: then training gives back what it had gained, and begins anew.
        """
        if harmed:
            self.fewest, self.lowest, self.since = 2**62, float("inf"), step
        elif report.n_stubborn < self.fewest or report.loss < 0.99 * self.lowest:
            self.fewest = min(self.fewest, report.n_stubborn)
            self.lowest = min(self.lowest, report.loss)
            self.since = step
        return step - self.since > self.patience + step // 4 or step >= self.limit
