"""What changed from one plan to another."""

from __future__ import annotations

from typing import Literal

from lorasize.records import Difference, Plan

QuantityName = Literal["tokens", "nats", "rank", "parameters", "bytes", "seconds"]


def compare(old: Plan, new: Plan) -> tuple[Difference, ...]:
    """What changed from one plan to another, quantity by quantity; those that stayed are left out."""
    both = zip(_quantities(old).items(), _quantities(new).values(), strict=True)
    return tuple(Difference(id=name, before=was, after=now) for (name, was), now in both if was != now)


def _quantities(plan: Plan) -> dict[QuantityName, float | None]:
    adapter, prediction, demand = plan.adapter, plan.prediction, plan.demand
    return {
        "tokens": plan.corpus.n_tokens,
        "nats": None if demand is None else demand.nats,
        "rank": None if adapter is None else adapter.rank,
        "parameters": None if adapter is None else adapter.n_parameters,
        "bytes": None if adapter is None else adapter.bytes,
        "seconds": None if prediction is None else prediction.seconds.point,
    }
