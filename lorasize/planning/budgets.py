"""Limits on what an adapter may cost, and how a plan stands against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorasize.records import (
    AdapterSpec,
    Against,
    Budget,
    Level,
    Prediction,
)


def _held(budget: Budget) -> Budget:
    """A budget of the plan with its result worked out again."""
    over: Literal["warn", "fail"] = "warn" if budget.level == "warn" else "fail"
    return budget.model_copy(update={"result": "pass" if budget.actual <= budget.limit else over})


@dataclass(frozen=True)
class Limits:
    """What the adapter may cost; None is no limit. Bytes on disk, seconds of training, bytes of memory.

    Attributes:
        levels: By budget: `off`, `warn`, or `error`, the default.
        against: By budget: `point` estimate, the default, or the `upper` end of its interval, the default of seconds.
    """

    max_rank: int | None = None
    max_parameters: int | None = None
    max_bytes: int | None = None
    max_seconds: float | None = None
    max_memory: int | None = None
    levels: Mapping[str, Level] = field(default_factory=dict)
    against: Mapping[str, Against] = field(default_factory=dict)


NO_LIMITS = Limits()


def budgets(
    limits: Limits, adapter: AdapterSpec, prediction: Prediction, *, same_device: bool = True
) -> tuple[Budget, ...]:
    """Each limit against the plan. The upper end of rank, parameters and bytes is that of the rank interval.

    Seconds measured on another device only warn.
    """
    most = max(adapter.rank, prediction.rank_interval[1])
    asked: tuple[tuple[str, float | None, float, float], ...] = (
        ("rank", limits.max_rank, adapter.rank, most),
        ("parameters", limits.max_parameters, adapter.n_parameters, adapter.n_parameters * most // adapter.rank),
        ("bytes", limits.max_bytes, adapter.bytes, adapter.bytes * most // adapter.rank),
        ("seconds", limits.max_seconds, prediction.seconds.point, prediction.seconds.hi),
        ("memory", limits.max_memory, prediction.peak_memory_bytes, prediction.peak_memory_bytes),
    )
    found = []
    for name, limit, point, upper in asked:
        level = limits.levels.get(name, "error")
        if limit is None or level == "off":
            continue
        against = limits.against.get(name, "upper" if name == "seconds" else "point")
        warn_only = level == "warn" or (name == "seconds" and not same_device)
        found.append(_budget(name, limit, point if against == "point" else upper, against, warn_only=warn_only))
    return tuple(found)


def _budget(name: str, limit: float, actual: float, against: Against, *, warn_only: bool) -> Budget:
    over: Literal["warn", "fail"] = "warn" if warn_only else "fail"
    return Budget(
        id=name,
        limit=limit,
        actual=actual,
        level="warn" if warn_only else "error",
        result="pass" if actual <= limit else over,
        against=against,
    )


def _kept(verdict: Sequence[Budget]) -> bool:
    return all(b.result != "fail" for b in verdict)
