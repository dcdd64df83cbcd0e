"""What training costs on this device: seconds of a step and bytes of memory, from probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorasize import models
from lorasize.models.placement import resident_bytes
from lorasize.records import CostModel, Observation

Array = NDArray[np.float64]

# Standard deviation of ln seconds: not tuned.
_UNKNOWN_SPREAD = 0.5  # where three observations or fewer leave no residual to measure
_LEAST_SPREAD = 0.1  # however well the probes agree


def fit_cost(base: models.BaseModel, observations: Sequence[Observation]) -> CostModel:
    """Seconds per step against positions and layers run, by least squares without negative terms; those before them."""
    layers = np.array([base.n_layers - min(o.probe.layers_to_transform) for o in observations], dtype=float)
    positions = np.array([o.probe.n_tokens for o in observations], dtype=float)
    seconds = np.array([o.seconds_per_step for o in observations])
    design = np.stack([np.ones_like(positions), positions * layers, positions], axis=1)
    terms = non_negative(design, seconds)
    before = [o.seconds - o.steps * o.seconds_per_step for o in observations]
    spread = float(np.std(np.log(seconds / (design @ terms)))) if len(seconds) > 3 else _UNKNOWN_SPREAD
    weights = resident_bytes(base.model)
    overhead, per_token = memory_terms(observations, weights, of_process=base.device.type == "cpu")
    return CostModel(
        seconds_overhead=float(terms[0]),
        seconds_per_layer_token=float(terms[1]),
        seconds_per_head_token=float(terms[2]),
        seconds_setup=max(0.0, float(np.median(before))),
        relative_spread=max(_LEAST_SPREAD, spread),
        memory_base_bytes=weights,
        memory_bytes_per_token=per_token,
        memory_overhead_bytes=overhead,
    )


def memory_terms(observations: Sequence[Observation], weights: int, *, of_process: bool) -> tuple[int, float]:
    """Bytes held besides the weights whatever the batch, and bytes per position of a step.

    A peak `of_process` is that of a probe's process so far: of the most positions that any probe had until then. An
    accelerator's is the probe's own.
    """
    most = np.array([o.probe.n_tokens for o in observations], dtype=float)
    peaks = np.array([o.peak_memory_bytes for o in observations], dtype=float)
    if of_process:
        most, peaks = np.maximum.accumulate(most), np.maximum.accumulate(peaks)
    fixed, per_token = non_negative(np.stack([np.ones_like(most), most], axis=1), peaks)
    return max(0, round(float(fixed)) - weights), float(per_token)


def non_negative(design: Array, wanted: Array) -> Array:
    """The terms by least squares relative to `wanted`, terms that would be negative left out."""
    kept = list(range(design.shape[1]))
    while True:
        solution = np.linalg.lstsq(design[:, kept] / wanted[:, None], np.ones_like(wanted), rcond=None)[0]
        if (solution >= 0).all() or len(kept) == 1:
            full = np.zeros(design.shape[1])
            full[kept] = np.maximum(solution, 0.0)
            return full
        kept.pop(int(np.argmin(solution)))
