"""Growing an adapter that is too small: by half its rank, as far as the plan's budgets allow."""

from __future__ import annotations

from collections.abc import Mapping

from lorasize.models.adapters import count_parameters
from lorasize.models.shapes import LinearShape
from lorasize.records import BYTES_PER_PARAMETER, AdapterSpec, Plan

_MAX_RANK = 256  # to which an adapter grows; not tuned


def larger(spec: AdapterSpec, plan: Plan, shapes: Mapping[str, LinearShape]) -> AdapterSpec | None:
    """The next larger adapter; None at the largest rank, or where it would break a budget of the plan."""
    if spec.rank >= _MAX_RANK:
        return None
    rank = min(_MAX_RANK, spec.rank + max(1, spec.rank // 2))
    grown = at_rank(spec, rank, shapes)
    return None if _over_budget(grown, plan) else grown


def at_rank(spec: AdapterSpec, rank: int, shapes: Mapping[str, LinearShape]) -> AdapterSpec:
    """The adapter with another rank, to hold as many bits."""
    n_parameters = count_parameters(shapes, spec.site, rank)
    changes = {"rank": rank, "lora_alpha": rank, "n_parameters": n_parameters}
    changes["bytes"] = n_parameters * BYTES_PER_PARAMETER
    density = spec.bits_per_parameter * spec.n_parameters / n_parameters
    return spec.model_copy(update={**changes, "bits_per_parameter": density})


def _over_budget(spec: AdapterSpec, plan: Plan) -> bool:
    """Whether an adapter breaks a budget of the plan."""
    size = {"rank": spec.rank, "parameters": spec.n_parameters, "bytes": spec.bytes}
    return any(b.level == "error" and size.get(b.id, 0) > b.limit for b in plan.budgets)
