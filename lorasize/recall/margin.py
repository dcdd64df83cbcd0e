"""How far above the threshold training must go, so that decoding's arithmetic cannot take a token below it."""

from __future__ import annotations

import math

from lorasize.artifacts.events import Raised
from lorasize.records import RecallReport

_HIGHEST = 0.95  # p that training is taken to at most; not tuned
_LEAST_SHIFT = 0.3  # log-odds by which a rise is worth a round of training; not tuned
_AMPLE = 1.25  # times what an engine took from the log-odds: docs/log/robustness.md#what-serves-trains-along
_LOWEST = 1e-6  # p that is still told apart from 0


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


def next_for_engine(report: RecallReport, threshold: float, trained_to: float) -> Raised | None:
    """The p to train every token to next, so that an engine's arithmetic takes none below the threshold.

    None where it is enough, or cannot be raised. An engine tells no gap of decoding, so what is asked for is higher by
    what the smallest p lost there, in log-odds, and by a quarter more.

    Args:
        report: By the engine, of an adapter trained to `trained_to`.
        threshold: What p must exceed there.
        trained_to: The p that training took every token above.
    """
    told = [one.min_probability for one in report.passages] + [one.probability for one in report.failures]
    lowest = max(_LOWEST, min((p for p in told if p is not None), default=threshold))
    if (report.recalled and (report.threshold_met or lowest > threshold)) or trained_to >= _HIGHEST:
        return None
    lost = _log_odds(trained_to) - _log_odds(lowest)
    wanted = max(_log_odds(trained_to) + _LEAST_SHIFT, _log_odds(threshold) + _AMPLE * lost)
    to = min(_HIGHEST, 1 / (1 + math.exp(-wanted)))
    return Raised(to, max(0.0, math.log(trained_to / lowest)), None if report.engine is None else report.engine.name)


def _log_odds(p: float) -> float:
    return math.log(p / (1 - p))
