"""Capacity slack: what the law predicts an adapter to hold, over what a corpus asks.

A corpus of D nats counts as ℓ = D / reference_loss tokens of the calibration's random text, so that text of any kind
is measured by what has to be written and not by its token count. Capacity slack is the law's loss reduction at (N, ℓ)
over `reference_loss`: predicted over required. 1 means that the law just reaches the ceiling.
"""

from __future__ import annotations

from lorasize.law.form import predict
from lorasize.records import (
    Demand,
    Law,
)


def equivalent_tokens(law: Law, demand: Demand) -> float:
    """Tokens of the calibration's random text that need as much writing as this corpus; at least one."""
    return max(1.0, demand.nats / law.reference_loss)


def capacity_slack(law: Law, effective_parameters: float, demand: Demand) -> float:
    """Predicted reduction ÷ required reduction, unclipped.

    A corpus with base loss L0 is then predicted to lose L0 · soft_capped(slack) nats per token.
    """
    return predict(law, effective_parameters, equivalent_tokens(law, demand)) / law.reference_loss
