"""Sites of the tiny models."""

from __future__ import annotations

from lorasize.records import Site

MLP = Site(target_modules=("gate_proj", "up_proj", "down_proj"), layers_to_transform=(1, 2, 3))
UP = Site(target_modules=("up_proj",), layers_to_transform=(2,))
