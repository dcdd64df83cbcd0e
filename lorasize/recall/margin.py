"""How far above the threshold training must go, so that decoding's arithmetic cannot take a token below it."""

from __future__ import annotations

import math

from lorasize.records import RecallReport

_HIGHEST = 0.95  # p that training is taken to at most; not tuned
_LEAST_SHIFT = 0.3  # log-odds by which a rise is worth a round of training; not tuned


def next_target_probability(report: RecallReport, threshold: float, trained_to: float) -> float | None:
    """The p to train every token to next, so that decoding's arithmetic cannot take it below the threshold.

    None where it is enough: the smallest p of the model as it is served, lowered by the largest |Δ ln p| seen in
    decoding, is still above the threshold. Else the log-odds asked for rise by what is missing; one step of that may
    not suffice, since the smallest p of another dtype is not that of training.

    Args:
        report: Of an adapter trained to `trained_to`.
        threshold: What p must exceed wherever it is decoded.
        trained_to: The p that training took every token above.
    """
    p, gap = report.min_probability, report.decoding_gap
    if p is None or gap is None or trained_to >= _HIGHEST:
        return None
    missing = math.inf if p <= 0 else math.log(threshold / p) + gap  # nats of ln p
    if missing < 0:
        return None
    shift = max(_LEAST_SHIFT, missing / max(1e-3, 1 - p))  # d ln p = (1 − p) · d log-odds
    return min(_HIGHEST, 1 / (1 + (1 / trained_to - 1) * math.exp(-shift)))
