"""How much a calibration probes: the presets.

No number was tuned for the accuracy of plans. Where the log has an entry on one, it is cited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lorasize.records import PROBE_STEPS

PresetName = Literal["brief", "quick", "standard", "thorough"]


@dataclass(frozen=True)
class Preset:
    """One size of calibration. A share is one of the boundary, in bits per parameter, that the first probes find.

    Attributes:
        name: What users and the provenance call it.
        budget: Layer-tokens of work (`lorasize.law.next_probes.work_of`) after which no further round starts.
        max_probes: Probes at most, where the budget would allow for more.
        max_steps: Optimiser steps of one probe at most.
        n_layer_sets: How many sets of layers are probed, from one layer at two thirds of the depth to eleven around it.
        other_modules: Whether the other projections are probed too.
        first_ratio: Bits per parameter that the first probe asks.
        rank_two_share: What the probe at rank 2 asks.
        text_share: What the probe of text asks.
        second_text_share: What a second probe of text asks; None where there is none.
        more_layers_share: What the probe at the second set of layers asks.
    """

    name: PresetName
    budget: float
    max_probes: int
    max_steps: int
    n_layer_sets: int
    other_modules: bool
    first_ratio: float
    rank_two_share: float
    text_share: float
    second_text_share: float | None
    more_layers_share: float


# Its budget is a time: docs/log/speed.md#the-demo. There is none for both sides of the boundary at rank 2, nor for
# successes that take long: docs/log/speed.md#quick-with-late-successes-negative. The rest is not tuned.
_QUICK = Preset(
    name="quick",
    budget=2.2e6,
    max_probes=10,
    max_steps=200,
    n_layer_sets=2,
    other_modules=False,
    first_ratio=1.0,
    rank_two_share=1.25,
    text_share=0.5,
    second_text_share=None,
    more_layers_share=0.6,
)

# Budget (a time) and steps: docs/log/law.md#probes-of-up-to-400-steps. The rest is not tuned.
_STANDARD = Preset(
    name="standard",
    budget=10e6,
    max_probes=40,
    max_steps=PROBE_STEPS,
    n_layer_sets=4,
    other_modules=True,
    first_ratio=0.75,
    rank_two_share=0.8,
    text_share=0.7,
    second_text_share=0.9,
    more_layers_share=0.75,
)

# Begins as `standard` does and goes on for longer. Not tuned, and no run of it is in the log.
_THOROUGH = replace(_STANDARD, name="thorough", budget=36e6, max_probes=120, n_layer_sets=5)

# Probes under the bound alone.
_BRIEF = replace(_QUICK, name="brief", max_probes=0)

PRESETS: Mapping[PresetName, Preset] = {preset.name: preset for preset in (_BRIEF, _QUICK, _STANDARD, _THOROUGH)}
