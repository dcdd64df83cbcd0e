"""Probes that train under a bound on drift, as `apply` does: few, since their law has one site and one ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from lorasize import models
from lorasize.models import adapters
from lorasize.probing.presets import PresetName
from lorasize.records import ProbeKind, ProbeSpec
from lorasize.training.growth import bounded_site

# Kinds of text, and parameters for each of their nats: from where plans are to where recall ends. Beyond the first more
# parameters hardly save steps: docs/log/harm.md#larger-ranks-under-the-bound. The others are not tuned.
_QUICK: tuple[tuple[ProbeKind, float], ...] = (("random", 900.0), ("text", 45.0), ("random", 9.0))
_MORE: tuple[tuple[ProbeKind, float], ...] = (("random", 3.0), ("text", 150.0), ("random", 90.0), ("random", 22.0))
# Tokens of random text whose nats are meant, where one rank is not already for more; not tuned.
_TOKENS: Mapping[ProbeKind, float] = {"random": 192.0, "text": 48.0}
_FEW = 64.0  # of the first probe, whose rank would be several hundred for more; not tuned


def bounded_specs(
    base: models.BaseModel,
    preset: PresetName,
    max_drift: float,
    nats_per_token: Callable[[ProbeKind], float],
    spec_at: Callable[..., ProbeSpec],
) -> Iterator[ProbeSpec]:
    """The probes under a bound of `max_drift` nats per token.

    Args:
        base: The model.
        preset: How much is probed.
        max_drift: The bound.
        nats_per_token: Base loss of each kind of text.
        spec_at: The probe of so many tokens at a site, as `Search.spec_at`.
    """
    shapes = models.linear_shapes(base.model)
    site = bounded_site(base.n_layers, shapes)
    each = adapters.count_parameters(shapes, site, 1)
    longest = base.max_positions // 2
    dense = nats_per_token("random")
    for k, (kind, ratio) in enumerate(_QUICK if preset in ("brief", "quick") else (*_QUICK, *_MORE)):
        rank = max(1, round(ratio * (_TOKENS[kind] if k else _FEW) * dense / each))
        n_tokens = min(longest, round(rank * each / (ratio * nats_per_token(kind))))
        yield spec_at(site, rank, max(2, n_tokens), kind, k).model_copy(update={"max_drift": max_drift})
