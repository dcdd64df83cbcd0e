"""Layers at the depths wanted, in a model that has a module in some of its layers only."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def nearest_layers(wanted: Iterable[int], have: Collection[int]) -> tuple[int, ...]:
    """For each layer wanted the nearest one that has the module, none twice; of two as near, the lower."""
    free, found = set(have), []
    for layer in sorted(wanted):
        if free:
            found.append(min(free, key=lambda one: (abs(one - layer), one)))
            free.remove(found[-1])
    return tuple(sorted(found))
