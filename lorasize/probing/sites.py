"""Which sites a calibration probes."""

from __future__ import annotations

from typing import Literal

from lorasize import models
from lorasize.records import (
    Site,
)

Preset = Literal["quick", "standard", "thorough"]


def calibrated_sites(base: models.BaseModel, preset: Preset) -> list[Site]:
    """Sites to probe, the reference first.

    The reference is the last linear layer of a decoder layer that widens its input (the MLP's up-projection), in one
    layer at two thirds of the depth: measured best among single layers (docs/log.md). Then come more layers around it
    and, past `quick`, the other projections.
    """
    shapes = models.linear_shapes(base.model)
    best = models.widening_module(shapes)
    sets = _layer_sets(base.n_layers, {"quick": 2, "standard": 4, "thorough": 5}[preset])
    sites = [Site(target_modules=(best,), layers_to_transform=layers) for layers in sets]
    if preset != "quick":
        others = [name for name in shapes if name != best]
        sites += [Site(target_modules=(name,), layers_to_transform=sets[0]) for name in others]
    return list(dict.fromkeys(sites))


def _layer_sets(n_layers: int, how_many: int) -> list[tuple[int, ...]]:
    """One layer at two thirds of the depth, then 2, 4, 6 and 11 layers around it (as on 30 layers, by proportion)."""
    on_30 = [(20,), (16, 20), (16, 18, 20, 22), (14, 16, 18, 20, 22, 24), tuple(range(14, 25))]
    scaled = [tuple(sorted({layer * n_layers // 30 for layer in layers})) for layers in on_30[:how_many]]
    return list(dict.fromkeys(scaled))
