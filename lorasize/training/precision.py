"""Coarser matrix products where the processor has them: float32 in and out, summed in float32.

bfloat16 on a CPU, tf32 on a CUDA card. A logit near 16 moves by some hundredths. Steps may use them
(docs/log/speed.md#bfloat16-products-in-steps); full looks, which decide, do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lorasize.models import devices


def has_coarse_products(device: torch.device) -> bool:
    """Whether this processor multiplies float32 in a coarser format in hardware. False for what is not known here."""
    if device.type == "cuda":
        return devices.has_tf32(device)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


@contextmanager
def coarse_products(wanted: bool) -> Iterator[None]:
    """Run float32 matrix products in the coarser format inside the block, if `wanted`."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def in_order(wanted: bool) -> Iterator[None]:
    """Let an accelerator add up in the same order each time inside the block, if `wanted`.

    Attention's backward pass adds its parts as they come otherwise, and two runs end with different adapters. What has
    no such order raises RuntimeError.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # a safeguard that costs a launch for each tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
