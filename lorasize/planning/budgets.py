"""Limits on what an adapter may cost, and how a plan stands against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorasize.records import AdapterSpec, Against, Budget, Level, Prediction


@dataclass(frozen=True)
class Limits:
    """What the adapter may cost; None is no limit. Bytes on disk, seconds of training, bytes of memory.

    Drift is nats per token that other text moves by.

    Attributes:
        levels: By budget: `off`, `warn`, or `error`, the default.
        against: By budget: `point` estimate, the default, or the `upper` end of its interval, the default of seconds
            and of drift.
    """

    max_rank: int | None = None
    max_parameters: int | None = None
    max_bytes: int | None = None
    max_seconds: float | None = None
    max_memory: int | None = None
    max_drift: float | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    against: Mapping[str, Against] = field(default_factory=dict)


NO_LIMITS = Limits()


def budgets(
    limits: Limits, adapter: AdapterSpec, prediction: Prediction, *, same_device: bool = True
) -> tuple[Budget, ...]:
    """Each limit against the plan. The upper end of rank, parameters and bytes is that of the rank interval.

    Seconds measured on another device only warn.
    """
    most, drift = max(adapter.rank, prediction.rank_interval[1]), prediction.drift
    asked: tuple[tuple[str, float | None, float, float], ...] = (
        ("rank", limits.max_rank, adapter.rank, most),
        ("parameters", limits.max_parameters, adapter.n_parameters, adapter.n_parameters * most // adapter.rank),
        ("bytes", limits.max_bytes, adapter.bytes, adapter.bytes * most // adapter.rank),
        ("seconds", limits.max_seconds, prediction.seconds.point, prediction.seconds.hi),
        ("memory", limits.max_memory, prediction.peak_memory_bytes, prediction.peak_memory_bytes),
        *([] if drift is None else [("drift", limits.max_drift, drift.point, drift.hi)]),
    )
    verdict = []
    for name, limit, point, upper in asked:
        level = limits.levels.get(name, "error")
        if limit is None or level == "off":
            continue
        against = limits.against.get(name, "upper" if name in ("seconds", "drift") else "point")
        only_warn = level == "warn" or (name == "seconds" and not same_device)
        actual = point if against == "point" else upper
        verdict.append(_judged(name, limit, actual, "warn" if only_warn else "error", against))
    return tuple(verdict)


def judged_again(budget: Budget) -> Budget:
    """A budget of a plan with its result worked out again, whatever the file says."""
    return _judged(budget.id, budget.limit, budget.actual, budget.level, budget.against)


def all_kept(verdict: Sequence[Budget]) -> bool:
    """Whether no budget fails; a warning is none."""
    return all(budget.result != "fail" for budget in verdict)


def _judged(name: str, limit: float, actual: float, level: Literal["error", "warn"], against: Against) -> Budget:
    over: Literal["warn", "fail"] = "warn" if level == "warn" else "fail"
    result = "pass" if actual <= limit else over
    return Budget(id=name, limit=limit, actual=actual, level=level, result=result, against=against)
