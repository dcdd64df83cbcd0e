"""Which linear layers stock PEFT puts an adapter on: not all that could carry one."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

# PEFT refuses this module of these models: their kernels read its weight and never call it.
_READ_NOT_CALLED = "out_proj"
_READ_IN = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})


def peft_adapts(model: Any, path: str) -> bool:
    """Whether PEFT leaves the name of a module as it is.

    In a mixture of experts whose weights transformers keeps in one parameter since version 5, PEFT takes some names
    (`up_proj`, `down_proj`) for those of the experts, wherever the module stands, and refuses or moves the adapter.
    """
    if path.rsplit(".", 1)[-1] == _READ_NOT_CALLED and getattr(model.config, "model_type", None) in _READ_IN:
        return False
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a version that knows no such names
        return True
    config = LoraConfig(target_modules=[path])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return False
    return set(config.target_modules or ()) == {path}
