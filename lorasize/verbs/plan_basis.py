"""Which calibration a plan goes by, with seconds for this device, and under which bound on drift."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorasize import models
from lorasize.artifacts.calibrations import (
    bounded_calibration,
    device_kind,
    find_calibration,
    near_misses,
    nearest_calibration,
)
from lorasize.errors import CalibrationError
from lorasize.models import adapters, placement
from lorasize.models.device_rates import device_rates
from lorasize.planning import moved_law, prior_calibration, scaled_seconds, with_rough_seconds
from lorasize.planning.composed import with_site
from lorasize.records import (
    MAX_DRIFT,
    RECIPE,
    Activation,
    BoundedLaw,
    Calibration,
    ModelFingerprint,
    PlanModel,
)
from lorasize.training.growth import bounded_site
from lorasize.verbs.update import BaseAdapter

_NO_LAW = (
    "Planned without a bound on what memorising does to other text: the calibration knows nothing of one. "
    "`lorasize calibrate --add-to` its file adds that; `lorasize apply --max-drift 0.02` trains under one all the same."
)
_OLD_UNBOUNDED = "The adapter to train on from has no bound on drift: planned without one."
# Positions that came back with a bound kept: docs/log/plans.md#twenty-thousand-tokens-in-400-passages-held
_KEPT = 26_000
_LARGE = (
    "Planned without a bound on what memorising does to other text: the largest corpus that was seen to keep one had "
    f"{_KEPT:,} positions. `--max-drift 0.02` asks for it all the same."
)
_LENT = (
    "What is known of adapters under a bound on drift is of {} on {} in {}, with a wider interval. `lorasize calibrate "
    "--add-to` measures it here."
)


def _where(law: BoundedLaw) -> str:
    """Where adapters under a bound sit."""
    layers = ", ".join(map(str, law.layers_to_transform))
    return f"Under a bound on drift adapters sit on {'+'.join(law.target_modules)} in layers {layers}"


def passed_over(folder: models.ModelFolder, model: PlanModel, device_type: str) -> Iterator[str]:
    """Notes on calibrations of the user's that do not fit."""
    wanted = (folder.fingerprint, model.ref, device_type, model.dtype, RECIPE)
    for reason in near_misses(*wanted, quantization=model.quantization):
        yield f"A calibration that does not fit: {reason}"


def timed_here(calibration: Calibration, source: Calibration, base: models.BaseModel) -> Calibration:
    """The calibration with seconds for this device: scaled where the source's are another's and it knows its rates."""
    if source.device == base.place:
        return calibration
    able = source.rates is not None and not placement.is_spread(base.model)
    here = device_rates(base.device, base.dtype) if able else None
    if here is not None:
        return scaled_seconds(calibration, source, here, base.place)
    return calibration if device_kind(source.device) == base.device.type else with_rough_seconds(calibration)


def find(
    fingerprint: ModelFingerprint, model: PlanModel, device_type: str, explicit: Path | None
) -> tuple[Calibration, bool]:
    """The calibration of this model in this dtype, and True; else one to move over, and False.

    One of another kind of device counts where there is none of this: only its seconds are not of here.
    """
    wanted = (fingerprint, model.ref, device_type, model.dtype, RECIPE, explicit)
    try:
        return find_calibration(*wanted, quantization=model.quantization)[0], True
    except CalibrationError:
        near = nearest_calibration(fingerprint, RECIPE, model.dtype, model.quantization) if explicit is None else None
        if near is None:
            raise
        return near


def moved_over(source: Calibration, base: models.BaseModel, ref: str) -> Calibration:
    """Another model's calibration as a stand-in for this model's."""
    shapes = models.linear_shapes(base.model)
    moved = prior_calibration(
        source,
        models.record_of(base, ref),
        {name: shape.in_layers for name, shape in shapes.items()},
        models.widening_module(shapes),
        device=base.place,
        dtype=models.dtype_name(base.dtype),
        weight_bytes=placement.resident_bytes(base.model),
    )
    return _lent(moved, source, base).model_copy(update={"quantization": base.quantization})


def _lent(calibration: Calibration, source: Calibration, base: models.BaseModel) -> Calibration:
    """The calibration with the source's law under a bound on drift, moved to this model."""
    shapes = models.linear_shapes(base.model)
    site = bounded_site(base.n_layers, shapes)
    law = moved_law(source, adapters.count_parameters(shapes, site, 1), site)
    return calibration.model_copy(update={"bounded": law})


def with_law(calibration: Calibration, base: models.BaseModel) -> tuple[Calibration, list[str]]:
    """The calibration with a law under a bound on drift, its own or that of this model elsewhere; and what to say."""
    if calibration.bounded is not None:
        return calibration, []
    other = bounded_calibration(base.fingerprint, calibration.recipe)
    if other is None:
        return calibration, []
    note = _LENT.format(other.model.ref, other.device, other.dtype)
    return _lent(calibration, other, base), [note]


def at_site(
    calibration: Calibration, base: models.BaseModel, target_modules: Sequence[str] | None, layers: Sequence[int] | None
) -> tuple[Calibration, list[str]]:
    """The calibration with the site that the user named alone, and what to say of it.

    Raises:
        CalibrationError: it knows nothing of these modules, or they are in none of these layers.
    """
    parameters = {name: shape.in_layers for name, shape in models.linear_shapes(base.model).items()}
    return with_site(calibration, target_modules or calibration.sites[0].target_modules, layers, parameters)


def bound_of(
    asked: float | None,
    calibration: Calibration,
    target_modules: Sequence[str] | None,
    old: BaseAdapter | None,
    activation: Activation | None,
    n_positions: int,
    layers: Sequence[int] | None = None,
) -> tuple[float | None, list[str]]:
    """The bound on drift of a plan, nats per token, None for none; and why none, where that was not asked for.

    Args:
        asked: What the user asked for: infinite for no bound, None for what suits.
        calibration: What the plan goes by.
        target_modules: What the user asked for.
        old: The adapter to train on from.
        activation: What the adapter acts after; text without it is the base model's anyway.
        n_positions: Of the corpus, prompts included.
        layers: What the user asked for, all when empty.

    Raises:
        CalibrationError: a bound is asked for in layers where adapters under one do not sit.
    """
    law = calibration.bounded
    elsewhere = layers is not None and law is not None and set(layers) != set(law.layers_to_transform)
    if asked is not None:
        if elsewhere and law is not None and math.isfinite(asked):
            raise CalibrationError(f"{_where(law)}: plan without a bound, or without naming layers.")
        return (asked if math.isfinite(asked) else None), []
    if activation is not None:
        return None, []
    if old is not None:
        drift = old.record.drift
        bound = None if drift is None else drift.bound
        return bound, [_OLD_UNBOUNDED] if bound is None else []
    if law is None:
        return None, [_NO_LAW]
    if elsewhere or (target_modules is not None and set(target_modules) != set(law.target_modules)):
        return None, [f"Planned without a bound on what memorising does to other text. {_where(law)} alone."]
    if n_positions > _KEPT:
        return None, [_LARGE]
    return MAX_DRIFT, []
