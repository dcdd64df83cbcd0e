"""Which sites a calibration probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorasize import models
from lorasize.planning.depths import nearest_layers
from lorasize.probing.presets import Preset
from lorasize.records import Site

# Depths of a model of 30 layers; others are scaled. One layer was compared with two others only, and more layers with
# one: docs/log/recipe.md#layer-for-one-page, docs/log/law.md#modules-and-layers. The sets themselves are not tuned.
_LAYERS_OF_30 = ((20,), (16, 20), (16, 18, 20, 22), (14, 16, 18, 20, 22, 24), tuple(range(14, 25)))


def calibrated_sites(base: models.BaseModel, preset: Preset) -> list[Site]:
    """Sites to probe, the reference first.

    The reference is the linear layer that widens the residual stream (the MLP's up-projection; why:
    docs/log/law.md#modules-and-layers), in one layer at two thirds of the depth. Then come more layers around it and,
    where the preset asks for them, the other projections: each in the nearest layers that have it.
    """
    shapes = models.linear_shapes(base.model)
    widening = models.widening_module(shapes)
    sets = layer_sets(base.n_layers, preset.n_layer_sets)
    sites = [_site(shapes, widening, layers) for layers in sets]
    if preset.other_modules:
        sites += [_site(shapes, name, sets[0]) for name in shapes if name != widening]
    return list(dict.fromkeys(sites))


def _site(shapes: Mapping[str, models.LinearShape], name: str, layers: Sequence[int]) -> Site:
    return Site(target_modules=(name,), layers_to_transform=nearest_layers(layers, shapes[name].in_layers))


def layer_sets(n_layers: int, how_many: int) -> list[tuple[int, ...]]:
    """One layer at two thirds of the depth, then 2, 4, 6 and 11 layers around it (as on 30 layers, by proportion)."""
    scaled = [tuple(sorted({layer * n_layers // 30 for layer in layers})) for layers in _LAYERS_OF_30[:how_many]]
    return list(dict.fromkeys(scaled))
