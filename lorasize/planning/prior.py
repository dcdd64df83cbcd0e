"""What to go by before a model is calibrated: another model's calibration, moved over and much less certain.

A parameter at the same relative depth of the same kind of layer is taken to hold as many bits. The law and the
transition are the other model's; its reference site becomes this model's reference module, at what that module is worth
in the other model where it is known there. Its other modules count where this model has layers of that name, in the
nearest layers that have them all. How far that carries is unknown until measured, so an even chance of recall moves by
0.8 of an e-fold either way (half of one under a bound on drift), and every plan made from it is `extrapolated`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from lorasize.planning.depths import nearest_layers
from lorasize.records import BoundedLaw, Calibration, CalibrationModel, CostModel, Site, SiteEfficiency

LOCATION_SD = 0.8  # of ln slack: bits per parameter of another model: docs/log/plans.md#priors-on-two-real-models
BOUNDED_LOCATION_SD = 0.5  # the same of parameters per nat under a bound on drift; not tuned
STEPS_SD, DRIFT_SD = 0.4, 0.5  # of ln steps and of ln drift under a bound, on another model; not tuned
EFFICIENCY_SD = 0.3  # of ln efficiency, as for a site that no open probe measures
TIME_SPREAD = 2.0  # seconds may be three times more or less
SOURCE = "prior_from"  # provenance: the model whose calibration stands in


def prior_calibration(
    source: Calibration,
    model: CalibrationModel,
    parameters_per_rank: Mapping[str, Mapping[int, int]],
    reference_module: str,
    *,
    device: str,
    dtype: str,
    weight_bytes: int,
) -> Calibration:
    """A stand-in calibration for `model`.

    Args:
        source: The calibration to move over.
        model: The model that has none.
        parameters_per_rank: Of each linear layer, by module name, in each decoder layer that has it.
        reference_module: Where this model's adapters sit by default: not always the same kind of module.
        device: This device, by name.
        dtype: Of the base weights.
        weight_bytes: Size of this model's weights; memory and seconds are scaled by it.
    """
    spread = math.hypot(source.transition.location_stderr, LOCATION_SD)
    return Calibration(
        model=model,
        recipe=source.recipe,
        device=device,
        dtype=dtype,
        law=source.law,
        sites=_moved_sites(source, model.n_layers, parameters_per_rank, reference_module),
        transition=source.transition.model_copy(update={"location_stderr": spread}),
        cost=_moved_cost(source, model.n_layers, weight_bytes),
        observations=(),
        provenance={**source.provenance, SOURCE: f"{source.model.ref} on {source.device} in {source.dtype}"},
    )


def moved_law(source: Calibration, n_parameters_per_rank: int, site: Site) -> BoundedLaw | None:
    """Another model's law under a bound on drift at this model's site, much less certain; None where it has none."""
    law = source.bounded
    if law is None:
        return None
    spread = math.hypot(law.transition.location_stderr, BOUNDED_LOCATION_SD)
    transition = law.transition.model_copy(
        update={"location_stderr": spread, "steps_spread": math.hypot(law.transition.steps_spread, STEPS_SD)}
    )
    return law.model_copy(
        update={
            **site.model_dump(),
            "parameters_per_rank": n_parameters_per_rank,
            "transition": transition,
            "drift_spread": math.hypot(law.drift_spread, DRIFT_SD),
            "observations": (),
        }
    )


def _moved_sites(
    source: Calibration, n_layers: int, parameters_per_rank: Mapping[str, Mapping[int, int]], reference_module: str
) -> tuple[SiteEfficiency, ...]:
    """The sites whose modules this model has, at the same relative depth; the first of those that fall together."""
    best, depth = source.sites[0].target_modules, n_layers / source.model.n_layers
    worth = next((s.efficiency for s in source.sites if s.target_modules == (reference_module,)), 1.0)
    sites: dict[Site, SiteEfficiency] = {}
    for site in source.sites:
        modules = (reference_module,) if site.target_modules == best else site.target_modules
        if any(name not in parameters_per_rank for name in modules):
            continue
        have = set.intersection(*(set(parameters_per_rank[name]) for name in modules))
        layers = nearest_layers({int(layer * depth) for layer in site.layers_to_transform}, have)
        if not layers:
            continue
        efficiency = site.efficiency * (worth if site.target_modules == best else 1.0)
        moved = SiteEfficiency(
            target_modules=modules,
            layers_to_transform=layers,
            efficiency=efficiency,
            stderr=math.hypot(site.stderr, EFFICIENCY_SD * efficiency),
            parameters_per_rank=sum(parameters_per_rank[name][layer] for name in modules for layer in layers),
        )
        sites.setdefault(moved.site, moved)
    return tuple(sites.values())


def _moved_cost(source: Calibration, n_layers: int, weight_bytes: int) -> CostModel:
    """Seconds and bytes in proportion to the weights."""
    cost, depth = source.cost, n_layers / source.model.n_layers
    size, forward = weight_bytes / max(1, cost.memory_base_bytes), cost.seconds_per_forward_token
    return cost.model_copy(
        update={
            "seconds_per_layer_token": cost.seconds_per_layer_token * size / depth,
            "seconds_per_head_token": cost.seconds_per_head_token * size,
            "seconds_setup": cost.seconds_setup * size,
            "seconds_per_forward_token": None if forward is None else forward * size,
            "relative_spread": TIME_SPREAD,
            "memory_base_bytes": weight_bytes,
            "memory_bytes_per_token": cost.memory_bytes_per_token * size,
        }
    )


def source_of(calibration: Calibration) -> str | None:
    """The model whose calibration stands in; None for a calibration of its own."""
    return calibration.provenance.get(SOURCE)
