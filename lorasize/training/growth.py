"""Adapters that differ from the plan's: grown where they are too small, spread where other text must not suffer.

Both as far as the plan's budgets allow.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorasize.models.adapters import count_parameters
from lorasize.models.shapes import LinearShape, widening_module
from lorasize.planning.depths import nearest_layers
from lorasize.records import BYTES_PER_PARAMETER, AdapterSpec, Plan, Site

# Of an adapter under a bound on drift, in a model of 30 layers; others are scaled. At rank 1 some
# texts move by more than the bound: docs/log/harm.md#a-bound-on-drift.
_LAYERS_OF_30 = (14, 16, 18, 20, 22, 24)
_RANKS = (16, 8, 4, 2, 1)
_MAX_RANK = 256  # to which an adapter grows; not tuned


def larger(spec: AdapterSpec, plan: Plan, shapes: Mapping[str, LinearShape]) -> AdapterSpec | None:
    """The next larger adapter; None at the largest rank, or where it would break a budget of the plan."""
    if spec.rank >= _MAX_RANK:
        return None
    rank = min(_MAX_RANK, spec.rank + max(1, spec.rank // 2))
    grown = at_rank(spec, rank, shapes)
    return None if _over_budget(grown, plan) else grown


def bounded_spec(plan: Plan, n_layers: int, shapes: Mapping[str, LinearShape]) -> AdapterSpec:
    """The adapter to train under a bound on drift: the widening module of six layers, at rank 16 or the plan's.

    A smaller rank where the plan's budgets ask for it; the plan's own adapter where they leave no room at all.
    """
    planned = plan.adapter
    assert planned is not None
    where = bounded_site(n_layers, shapes)
    site = planned.model_copy(update=where.model_dump())
    able = (at_rank(site, rank, shapes) for rank in (max(_RANKS[0], planned.rank), *_RANKS))
    return next((spec for spec in able if not _over_budget(spec, plan)), planned)


def bounded_site(n_layers: int, shapes: Mapping[str, LinearShape]) -> Site:
    """Where an adapter sits that is under a bound on drift: the widening module of six layers."""
    module = widening_module(shapes)
    layers = nearest_layers(sorted({layer * n_layers // 30 for layer in _LAYERS_OF_30}), shapes[module].in_layers)
    return Site(target_modules=(module,), layers_to_transform=layers)


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
